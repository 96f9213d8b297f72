//! Several jobs at once, bounded in number and in bytes of memory.

use std::future::Future;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// Most jobs at once: more do not make stores any faster.
const MOST: usize = 16;

/// Runs `run` for each job with its cost in bytes, in their order, as many at once as fit `limit`; one that is larger than the
/// limit runs alone. `done` is called as they finish, in any order. Ends at the first error.
pub(crate) async fn run_bounded<J, T, E, F>(
    jobs: impl IntoIterator<Item = (u64, J)>,
    limit: u64,
    mut run: impl FnMut(J) -> F,
    mut done: impl FnMut(T),
) -> Result<(), E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut jobs = jobs.into_iter();
    let mut next = jobs.next();
    let mut running = FuturesUnordered::new();
    let mut bytes: u64 = 0;
    loop {
        let fits = |cost: u64, bytes: u64, count: usize| {
            count == 0 || (count < MOST && bytes.saturating_add(cost) <= limit)
        };
        while let Some((cost, job)) = next.take_if(|(cost, _)| fits(*cost, bytes, running.len())) {
            bytes = bytes.saturating_add(cost);
            let job = run(job);
            running.push(async move { (cost, job.await) });
            next = jobs.next();
        }
        match running.next().await {
            None => return Ok(()),
            Some((cost, result)) => {
                bytes = bytes.saturating_sub(cost);
                done(result?);
            }
        }
    }
}
