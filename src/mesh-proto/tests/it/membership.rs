//! Who is there: forming, dying, leaving, returning.

use std::time::Duration;

use smg_base::Timestamp;
use smg_mesh_proto::{CloseCode, Event, Input, MemberState, Profile, Refusal};

use crate::cluster::{Cluster, Crash, address};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn joined(cluster: &Cluster, at: usize) -> Option<bool> {
    let joins = cluster.nodes[at].events.iter().rev();
    joins.map(|(_, event)| event).find_map(|event| match event {
        Event::Joined { alone } => Some(*alone),
        _ => None,
    })
}

#[test]
fn clusters_form_within_three_seconds() {
    for (size, seeds) in [(2, 3), (3, 3), (5, 3), (16, 3), (64, 1)] {
        for seed in 0..seeds {
            let mut cluster = Cluster::new(size, seed);
            (0..size).for_each(|at| cluster.start(at));
            let took = cluster.until(secs(3), "formed", |cluster| {
                cluster.all_see_all() && (1..size).all(|at| joined(cluster, at) == Some(false))
            });
            println!("{size} nodes, seed {seed}: {took:?}, {} bytes", cluster.bytes);
            cluster.until(secs(3), "a full mesh", |cluster| {
                (0..size).all(|at| cluster.mesh(at).status().members.iter().all(|member| member.connected))
            });
            cluster.run(secs(10));
            assert!(cluster.all_see_all(), "{size} nodes, seed {seed}");
            assert_eq!(cluster.false_downs(Timestamp::ORIGIN), [""; 0], "{size} nodes, seed {seed}");
        }
    }
}

#[test]
fn a_node_without_seeds_acts_alone_at_once() {
    for seeds in [vec![], vec![0]] {
        let mut cluster = Cluster::new(1, 1);
        cluster.nodes[0].seeds = seeds;
        cluster.start(0);
        assert_eq!(joined(&cluster, 0), Some(true));
        let status = cluster.mesh(0).status();
        assert!(status.joined && status.alone);
        cluster.run(secs(60));
        assert!(!cluster.nodes[0].events.iter().any(|(_, event)| matches!(event, Event::Left)));
    }
}

#[test]
fn a_seed_that_comes_late_is_found() {
    let mut cluster = Cluster::new(3, 2);
    cluster.start(1);
    cluster.start(2);
    cluster.run(secs(3));
    assert_eq!((joined(&cluster, 1), joined(&cluster, 2)), (Some(true), Some(true)), "nobody came in time");
    cluster.run(secs(300));
    cluster.start(0);
    // The longest pause between two attempts is 30 s and a fifth.
    cluster.until(secs(37), "together", Cluster::all_see_all);
    cluster.until(secs(1), "joined", |cluster| (0..3).all(|at| joined(cluster, at) == Some(false)));
}

#[test]
fn a_seed_that_has_no_seeds_is_taken_back() {
    for how in [Crash::Reset, Crash::Silent] {
        let mut cluster = Cluster::new(3, 3);
        cluster.nodes[0].seeds = vec![];
        cluster = cluster.form();
        cluster.crash(0, how);
        cluster.run(secs(60));
        assert_eq!(cluster.state(1, 0), Some(MemberState::Down));
        cluster.start(0);
        cluster.until(secs(3), "taken back", Cluster::all_see_all);
    }
}

#[test]
fn a_chain_of_seeds_restarts_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut cluster = Cluster::new(3, 18);
        cluster.nodes[0].seeds = vec![1];
        cluster.nodes[1].seeds = vec![2];
        cluster.nodes[2].seeds = vec![];
        for at in order {
            cluster.start(at);
            cluster.run(secs(3));
        }
        cluster.until(secs(10), "together", Cluster::all_see_all);
    }
}

#[test]
fn all_restart_together() {
    for wiped in [false, true] {
        let mut cluster = Cluster::formed(5, 4);
        (0..5).for_each(|at| cluster.crash(at, Crash::Silent));
        if wiped {
            (0..5).for_each(|at| cluster.wipe(at));
        }
        cluster.run(secs(1));
        (0..5).for_each(|at| cluster.start(at));
        cluster.until(secs(3), "formed again", Cluster::all_see_all);
    }
}

/// How long it takes until every live node takes `victim` for dead.
fn detection(cluster: &mut Cluster, victim: usize, how: Crash, limit: Duration) -> Duration {
    cluster.crash(victim, how);
    cluster.until(limit, "known to all", |cluster| {
        cluster.live().all(|at| cluster.state(at, victim) == Some(MemberState::Down))
    })
}

#[test]
fn a_crash_is_known_to_all_within_the_bound_of_the_profile() {
    for (profile, size, bound) in [
        (Profile::Lan, 3, secs(6)),
        (Profile::Lan, 16, secs(6)),
        (Profile::Fast, 16, ms(2_500)),
        (Profile::Wan, 3, secs(10)),
    ] {
        let mut worst = Duration::ZERO;
        for seed in 0..10 {
            let mut cluster = Cluster::new(size, seed).with_profile(profile).form();
            cluster.run(secs(5) + ms(seed * 70));
            let since = cluster.now;
            worst = worst.max(detection(&mut cluster, size - 1, Crash::Silent, bound));
            cluster.until(ms(1_100), "its connections are given up", |cluster| {
                cluster.live().all(|at| cluster.member(at, size - 1).is_some_and(|member| !member.connected))
            });
            assert_eq!(cluster.false_downs(since), [""; 0], "seed {seed}");
        }
        println!("{} at {size}: worst of 10: {worst:?}", profile.as_str());
    }
}

#[test]
fn a_crash_that_breaks_connections_is_known_when_redialling_failed() {
    for size in [3, 16] {
        for seed in 0..5 {
            let mut cluster = Cluster::formed(size, seed);
            cluster.run(secs(2));
            detection(&mut cluster, 1, Crash::Reset, ms(1_300));
        }
    }
}

#[test]
fn a_broken_connection_alone_kills_nobody() {
    let mut cluster = Cluster::formed(4, 5);
    cluster.run(secs(2));
    let since = cluster.now;
    cluster.split(&[0], &[1]);
    cluster.run(secs(60));
    assert_eq!(cluster.false_downs(since), [""; 0]);
    assert!(cluster.all_see_all());
    assert!(!cluster.member(0, 1).expect("it is a member").connected);
    cluster.cuts.clear();
    cluster.until(secs(3), "connected again", |cluster| cluster.member(0, 1).is_some_and(|member| member.connected));
}

#[test]
fn a_cut_in_one_direction_kills_nobody() {
    let mut cluster = Cluster::formed(5, 6);
    cluster.run(secs(2));
    let since = cluster.now;
    cluster.cuts.insert((0, 1));
    cluster.run(secs(60));
    assert_eq!(cluster.false_downs(since), [""; 0]);
}

#[test]
fn a_node_that_leaves_has_left_at_once() {
    let mut cluster = Cluster::formed(5, 7);
    cluster.run(secs(1));
    cluster.give(2, Input::Leave);
    let took = cluster.until(ms(1_500), "left", |cluster| {
        cluster.nodes[2].events.iter().any(|(_, event)| *event == Event::Left)
            && [0, 1, 3, 4].iter().all(|at| cluster.state(*at, 2) == Some(MemberState::Left))
    });
    println!("left after {took:?}");
    assert_eq!(cluster.mesh(2).next_tick().as_nanos(), u64::MAX, "it does nothing more");
    cluster.nodes[2].mesh = None;
    cluster.run(secs(30));
    assert!([0, 1, 3, 4].iter().all(|at| cluster.state(*at, 2) == Some(MemberState::Left)), "it stays so");
    cluster.start(2);
    cluster.until(secs(3), "back", Cluster::all_see_all);
    assert_eq!(cluster.state(0, 2), Some(MemberState::Alive));
}

#[test]
fn a_node_that_left_is_taken_back_though_its_seeds_are_gone() {
    let mut cluster = Cluster::new(3, 17);
    cluster.nodes[2].seeds = vec![1];
    cluster = cluster.form();
    for at in [1, 2] {
        cluster.give(at, Input::Leave);
        cluster.run(secs(2));
        cluster.nodes[at].mesh = None;
    }
    cluster.start(2);
    cluster.until(secs(7), "taken back", Cluster::all_see_all);
}

#[test]
fn a_node_returns_under_its_name() {
    // (how it ended, time until it comes back, what its disk lost)
    let cases = [
        (Crash::Silent, ms(200), false),
        (Crash::Silent, ms(200), true),
        (Crash::Reset, ms(200), true),
        (Crash::Silent, secs(30), false),
        (Crash::Silent, secs(30), true),
        (Crash::Reset, secs(700), true),
    ];
    for (seed, (how, pause, wiped)) in (0..).zip(cases) {
        let mut cluster = Cluster::formed(5, seed);
        cluster.run(secs(1));
        let before = cluster.member(0, 3).expect("it is a member").boot;
        cluster.crash(3, how);
        cluster.run(pause);
        if wiped {
            cluster.wipe(3);
        }
        cluster.start(3);
        let took = cluster.until(secs(3), "back", |cluster| {
            let fresh = |at| cluster.member(at, 3).is_some_and(|member| member.boot > before && member.connected);
            cluster.all_see_all() && cluster.live().all(|at| at == 3 || fresh(at))
        });
        println!("{pause:?}, wiped {wiped}: {took:?}");
        let since = cluster.now + ms(1);
        cluster.run(secs(20));
        assert!(cluster.all_see_all());
        assert_eq!(cluster.false_downs(since), [""; 0]);
    }
}

#[test]
fn a_disk_that_forgot_some_starts_is_outbid() {
    let mut cluster = Cluster::formed(3, 8);
    let old = cluster.nodes[1].disk.clone();
    for _ in 0..3 {
        cluster.crash(1, Crash::Reset);
        cluster.start(1);
        cluster.until(secs(3), "back", Cluster::all_see_all);
        cluster.run(secs(1));
    }
    let before = cluster.member(0, 1).expect("it is a member").boot;
    cluster.crash(1, Crash::Reset);
    cluster.nodes[1].disk = old;
    cluster.start(1);
    cluster.until(secs(3), "back", |cluster| {
        cluster.all_see_all() && cluster.member(0, 1).is_some_and(|member| member.boot > before)
    });
}

#[test]
fn a_split_heals() {
    for size in [2, 5, 16] {
        for seed in 0..3 {
            let mut cluster = Cluster::formed(size, seed);
            cluster.run(secs(1));
            let (left, right): (Vec<_>, Vec<_>) = (0..size).partition(|at| *at < size / 2);
            cluster.split(&left, &right);
            cluster.run(secs(60));
            for at in &left {
                assert!(right.iter().all(|other| cluster.state(*at, *other) == Some(MemberState::Down)), "seed {seed}");
                assert!(left.iter().all(|other| cluster.sees(*at, *other)), "seed {seed}");
            }
            cluster.cuts.clear();
            let took = cluster.until(secs(3), "healed", Cluster::all_see_all);
            println!("{size} nodes, seed {seed}: {took:?}");
            let since = cluster.now + secs(1);
            cluster.run(secs(20));
            assert!(cluster.all_see_all());
            assert_eq!(cluster.false_downs(since), [""; 0], "seed {seed}");
        }
    }
}

#[test]
fn a_paused_node_comes_back() {
    let mut cluster = Cluster::formed(5, 9);
    cluster.run(secs(1));
    cluster.nodes[4].paused = true;
    cluster.run(secs(7));
    let others_gone = (0..4).filter(|at| cluster.state(*at, 4) == Some(MemberState::Down)).count();
    assert_eq!(others_gone, 4);
    let since = cluster.now;
    cluster.resume(4);
    cluster.until(secs(3), "back", Cluster::all_see_all);
    cluster.run(secs(10));
    assert!(cluster.all_see_all());
    let buried = cluster.false_downs(since);
    assert_eq!(buried, [""; 0], "its own late timers bury nobody");
}

#[test]
fn a_second_live_node_of_a_name_is_refused() {
    // (the seeds of the second, whether the first knows others)
    for (seed, seeds, alone) in [(1, vec![0], false), (2, vec![1], false), (3, vec![2], false), (4, vec![1], true)] {
        let mut cluster = Cluster::new(4, seed);
        cluster.nodes[3].name = "n1".to_owned();
        cluster.nodes[3].seeds = seeds;
        if alone {
            cluster.nodes[1].seeds = vec![];
            cluster.start(1);
        } else {
            (0..3).for_each(|at| cluster.start(at));
            cluster.until(secs(5), "formed", Cluster::all_see_all);
        }
        cluster.run(secs(5));
        let since = cluster.now;
        cluster.start(3);
        cluster.until(secs(3), "refused", |cluster| {
            cluster.events(3, since).any(|event| {
                matches!(event, Event::Refused(Refusal::NameInUse { name, address: at }) if name == "n1" && *at == address(1))
            })
        });
        cluster.nodes[3].mesh = None;
        cluster.run(secs(10));
        assert!(!cluster.nodes[1].events.iter().any(|(_, event)| matches!(event, Event::Refused(_))), "seed {seed}");
        assert!(cluster.all_see_all(), "seed {seed}");
        assert_eq!(cluster.false_downs(since), [""; 0], "seed {seed}");
    }
}

#[test]
fn of_two_parts_with_one_name_the_older_run_stays() {
    let mut cluster = Cluster::new(4, 11);
    cluster.nodes[2].seeds = vec![2];
    cluster.nodes[3].name = "n1".to_owned();
    cluster.nodes[3].seeds = vec![2];
    cluster.split(&[0, 1], &[2, 3]);
    cluster.start(0);
    cluster.start(1);
    cluster.run(secs(5));
    cluster.start(2);
    cluster.start(3);
    cluster.run(secs(5));
    cluster.cuts.clear();
    cluster.give(2, Input::Seeds(vec![address(0)]));
    let refused = |cluster: &Cluster, at: usize| {
        cluster.nodes[at].events.iter().any(|(_, event)| matches!(event, Event::Refused(_)))
    };
    cluster.until(secs(70), "refused", |cluster| refused(cluster, 3));
    cluster.nodes[3].mesh = None;
    cluster.until(secs(3), "settled", Cluster::all_see_all);
    cluster.run(secs(10));
    assert!(!refused(&cluster, 1));
    assert!(cluster.all_see_all());
}

#[test]
fn another_cluster_is_refused() {
    let mut cluster = Cluster::new(2, 12);
    cluster.nodes[1].cluster = "other".to_owned();
    cluster.start(0);
    cluster.start(1);
    cluster.run(secs(10));
    assert!(cluster.nodes[0].closes.contains(&CloseCode::WrongCluster));
    assert_eq!(cluster.member(0, 1), None);
    assert!(cluster.nodes[0].closes.len() < 20, "it is not let in, and not asked all the time");
}

#[test]
fn a_relay_that_does_not_answer_is_doubted_within_a_second() {
    let mut cluster = Cluster::formed(4, 13);
    cluster.run(secs(2));
    let peer = cluster.id(2);
    cluster.give(0, Input::RelayCandidates(vec![peer]));
    cluster.run(secs(2));
    let doubted = |cluster: &Cluster| cluster.member(0, 2).is_some_and(|member| member.doubted);
    assert!(!doubted(&cluster));
    cluster.nodes[2].paused = true;
    let took = cluster.until(ms(850), "doubted", doubted);
    println!("doubted after {took:?}");
    assert_eq!(cluster.state(0, 2), Some(MemberState::Alive), "a doubt is no verdict");
    cluster.resume(2);
    cluster.until(ms(600), "cleared", |cluster| !doubted(cluster));
}

#[test]
fn a_failed_forward_is_doubted_at_once_and_for_two_seconds() {
    let mut cluster = Cluster::formed(3, 14);
    cluster.run(secs(2));
    let peer = cluster.id(1);
    cluster.give(0, Input::ForwardFailed { peer });
    let doubted = |cluster: &Cluster| cluster.member(0, 1).is_some_and(|member| member.doubted);
    assert!(doubted(&cluster));
    let told = cluster.events(0, cluster.now).any(|event| matches!(event, Event::Member(member) if member.doubted));
    assert!(told, "the node hears of it in the same step");
    cluster.run(ms(1_990));
    assert!(doubted(&cluster));
    cluster.until(secs(1), "cleared", |cluster| !doubted(cluster));
}

#[test]
fn an_idle_cluster_says_little() {
    for (size, bound) in [(3, 900), (16, 900), (64, 1_200)] {
        let mut cluster = Cluster::formed(size, 15);
        cluster.run(secs(10));
        let (frames, bytes) = (cluster.frames, cluster.bytes);
        cluster.run(secs(20));
        let per_node = |total: u64| total / 20 / u64::try_from(size).expect("few nodes");
        println!(
            "{size} nodes: {} B/s, {} frames/s a node",
            per_node(cluster.bytes - bytes),
            per_node(cluster.frames - frames)
        );
        assert!(per_node(cluster.bytes - bytes) <= bound, "{size} nodes");
    }
}

#[test]
fn a_lossy_node_slows_its_probes_until_the_loss_is_over() {
    let mut cluster = Cluster::formed(4, 16);
    let stretched = |cluster: &Cluster| cluster.mesh(0).status().stretched;
    let links: Vec<_> = (1..4).map(|other| cluster.connection(0, other).expect("connected")).collect();
    let vitals = |cluster: &mut Cluster, loss: [f32; 3]| {
        for (connection, loss) in links.iter().zip(loss) {
            cluster.give(0, Input::Vitals { connection: *connection, rtt: ms(1), loss });
        }
    };
    vitals(&mut cluster, [0.3, 0.0, 0.0]);
    assert!(!stretched(&cluster), "one bad link of three is not its own fault");
    vitals(&mut cluster, [0.3, 0.06, 0.0]);
    assert!(stretched(&cluster));
    vitals(&mut cluster, [0.04, 0.04, 0.0]);
    assert!(stretched(&cluster), "it does not flutter");
    vitals(&mut cluster, [0.3, 0.0, 0.0]);
    assert!(!stretched(&cluster));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(5, seed);
        cluster.tape = Some(Vec::new());
        cluster = cluster.form();
        cluster.run(secs(10));
        cluster.tape
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}
