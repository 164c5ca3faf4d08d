//! Requests that name their worker.

use smg_base::WorkerId;
use smg_fleet::Pool;

use crate::{
    Ask, NoChoice, Standing,
    candidates::{Offers, standing},
};

/// The place in the pool of the worker that `target` names, by its id, its URL, or that place itself. A named worker is used
/// or nobody is.
pub(crate) fn find(pool: &Pool, ask: &Ask<'_>, target: &str) -> Result<usize, NoChoice> {
    let target = target.trim();
    let position = position(pool, target).ok_or(NoChoice::TargetUnavailable)?;
    match standing(&pool.workers[position], ask, Offers::Checked) {
        Standing::Considered | Standing::LowerPriority => Ok(position),
        Standing::Unavailable => Err(NoChoice::TargetUnavailable),
        // The caller may decide to let it have another try.
        Standing::Excluded => Err(NoChoice::AllExcluded),
        Standing::NotOffered => Err(NoChoice::NotOffered),
    }
}

fn position(pool: &Pool, target: &str) -> Option<usize> {
    if let Ok(id) = target.parse::<WorkerId>() {
        return pool.workers.binary_search_by_key(&id, |worker| worker.id).ok();
    }
    if let Ok(position) = target.parse::<usize>() {
        return (position < pool.workers.len()).then_some(position);
    }
    let url = target.trim_end_matches('/');
    pool.workers.iter().position(|worker| {
        let own = &worker.spec.url;
        own.as_str().eq_ignore_ascii_case(url) || own.authority().eq_ignore_ascii_case(url)
    })
}
