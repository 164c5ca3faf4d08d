//! The directed links between places: what the faults of the moment make of them.

use std::time::Duration;

use smg_base::Timestamp;

use crate::{delay, dice::Dice, plan::Harm};

/// One direction between two places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub(crate) cut: bool,
    pub(crate) loss: f64,
    extra: Duration,
    jitter: Duration,
    bursts: Option<Bursts>,
}

/// Moments in which nothing gets through.
#[derive(Clone, Debug)]
struct Bursts {
    every: Duration,
    length: Duration,
    next: Timestamp,
    until: Timestamp,
}

/// All links.
#[derive(Debug)]
pub(crate) struct Links {
    places: usize,
    links: Vec<Link>,
    base: Duration,
    spread: Duration,
    pub(crate) duplicate: f64,
    dice: Dice,
}

impl Links {
    pub(crate) fn new(places: usize, base: Duration, spread: Duration, dice: Dice) -> Self {
        Self { places, links: vec![Link::default(); places * places], base, spread, duplicate: 0.0, dice }
    }

    pub(crate) fn link(&self, from: usize, to: usize) -> &Link {
        &self.links[from * self.places + to]
    }

    pub(crate) fn are_open(&self, one: usize, other: usize) -> bool {
        !self.link(one, other).cut && !self.link(other, one).cut
    }

    /// Makes the links what these faults, and no others, make of them. A place belongs to the links of its node: `node_of` says
    /// which that is.
    pub(crate) fn set<'a>(&mut self, now: Timestamp, harms: impl Iterator<Item = &'a Harm>, node_of: &[usize]) {
        let mut fresh = vec![Link::default(); self.links.len()];
        self.duplicate = 0.0;
        for harm in harms {
            if let Harm::Duplicate { percent } = harm {
                self.duplicate = self.duplicate.max(f64::from(*percent) / 100.0);
            }
            for from in 0..self.places {
                for to in 0..self.places {
                    let link = &mut fresh[from * self.places + to];
                    apply(link, harm, node_of[from], node_of[to]);
                }
            }
        }
        for (old, mut new) in self.links.iter_mut().zip(fresh) {
            if let Some(bursts) = &mut new.bursts {
                bursts.next = now + self.dice.pause(bursts.every);
                bursts.until = bursts.next + self.dice.pause(bursts.length);
            }
            *old = new;
        }
    }

    /// How long a frame of so many bytes is under way that is sent now.
    pub(crate) fn delay(&mut self, now: Timestamp, from: usize, to: usize, size: usize) -> Duration {
        let rtt = self.rtt(from, to);
        let burst = self.burst(now, from, to);
        let link = &self.links[from * self.places + to];
        let loss = (link.loss + self.links[to * self.places + from].loss) / 2.0;
        // A gigabit a second: eight nanoseconds a byte.
        let sending = Duration::from_nanos(8 * size as u64);
        let mut delay = self.base + link.extra + sending + self.dice.up_to(self.spread + link.jitter);
        delay += delay::recovery(loss, rtt, &mut self.dice);
        if let Some(until) = burst {
            // The probe timeout that ends the wait has doubled meanwhile.
            let left = until.since(now);
            delay += left + self.dice.up_to(left) + rtt;
        }
        delay
    }

    /// A round trip without misfortune.
    pub(crate) fn rtt(&self, one: usize, other: usize) -> Duration {
        let ways = [self.link(one, other), self.link(other, one)];
        ways.iter().map(|link| self.base + link.extra + (self.spread + link.jitter) / 2).sum()
    }

    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        self.dice.up_to(longest)
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.dice.chance(probability)
    }

    /// Until when nothing gets through, if now is such a moment.
    fn burst(&mut self, now: Timestamp, from: usize, to: usize) -> Option<Timestamp> {
        let bursts = self.links[from * self.places + to].bursts.as_mut()?;
        while bursts.until <= now {
            bursts.next = bursts.until + self.dice.pause(bursts.every);
            bursts.until = bursts.next + self.dice.pause(bursts.length);
        }
        (bursts.next <= now).then_some(bursts.until)
    }
}

fn apply(link: &mut Link, harm: &Harm, from: usize, to: usize) {
    match harm {
        Harm::Loss { links, percent } if links.contain(from, to) => {
            link.loss = link.loss.max(f64::from(*percent) / 100.0);
        }
        Harm::Bursts { links, every_ms, length_ms } if links.contain(from, to) => {
            let (every, length) = (Duration::from_millis(*every_ms), Duration::from_millis(*length_ms));
            link.bursts = Some(Bursts { every, length, next: Timestamp::ORIGIN, until: Timestamp::ORIGIN });
        }
        Harm::Delay { links, millis, jitter_ms } if links.contain(from, to) => {
            link.extra = link.extra.max(Duration::from_millis(*millis));
            link.jitter = link.jitter.max(Duration::from_millis(*jitter_ms));
        }
        Harm::Cut { links } => link.cut |= links.contain(from, to) && from != to,
        Harm::Split { side } => link.cut |= side.contains(&from) != side.contains(&to),
        _ => {}
    }
}
