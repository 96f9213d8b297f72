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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn jobs_overlap_as_far_as_their_bytes_fit_and_a_large_one_runs_alone() {
        let (bytes, count, most_bytes, most) = (Cell::new(0), Cell::new(0), Cell::new(0), Cell::new(0));
        let costs = [30, 30, 30, 30, 500, 30, 100, 1, 1, 1].into_iter().chain(std::iter::repeat_n(0, 40));
        let run = async |cost: u64| {
            bytes.set(bytes.get() + cost);
            count.set(count.get() + 1);
            most.set(most.get().max(count.get()));
            most_bytes.set(most_bytes.get().max(bytes.get()));
            assert!(bytes.get() <= 100 || count.get() == 1, "{} bytes in {} jobs", bytes.get(), count.get());
            tokio::task::yield_now().await;
            bytes.set(bytes.get() - cost);
            count.set(count.get() - 1);
            Ok::<_, ()>(cost)
        };
        let mut done = 0;
        run_bounded(costs.map(|cost| (cost, cost)), 100, run, |cost| done += cost).await.unwrap();
        assert_eq!((done, most_bytes.get(), most.get()), (753, 500, MOST));
    }

    #[tokio::test]
    async fn the_first_error_ends_it() {
        let run = async |job: u32| if job == 3 { Err(job) } else { Ok(()) };
        assert_eq!(run_bounded((0..).map(|job| (60, job)), 100, run, |()| {}).await, Err(3));
    }
}
