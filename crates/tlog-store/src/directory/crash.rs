//! Failpoints of the directory store: steps after which a process of this crate's tests dies, as by SIGKILL. In any other build they are
//! nothing at all.

/// A step between two effects on the disk; the table of the tests says what has happened by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    BeforeWrite,
    AfterWrite,
    AfterSync,
    SegmentReserved,
    SegmentWritten,
    SegmentBeforeCut,
    SegmentCut,
    SegmentNamed,
    SegmentDurable,
    BeforeDelete,
    DeleteNamed,
    DeleteDurable,
    Deleted,
}

#[cfg(not(test))]
#[inline(always)]
pub(super) fn reached(_: Step) {}

#[cfg(test)]
pub(super) use tests::reached;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use rustix::process::{Signal, getpid, kill_process};
    use tlog_proto::{Epoch, VdiskId};

    use super::Step;
    use crate::directory::common::*;
    use crate::{DirectoryStore, ShardSlot, ShardStore};

    /// All steps, their names, what has happened by then, and the last hit at which a process dies there.
    const TABLE: [(Step, &str, &str, u64); 13] = [
        (Step::BeforeWrite, "before-write", "records are about to be written behind the last ones", 80),
        (Step::AfterWrite, "after-write", "they are written, and not synced", 80),
        (Step::AfterSync, "after-sync", "they are durable, and nobody was told", 80),
        (
            Step::SegmentReserved,
            "segment-reserved",
            "a new segment has its room, under a name that does not count",
            8,
        ),
        (Step::SegmentWritten, "segment-written", "its first record is durable, under that name", 8),
        (
            Step::SegmentBeforeCut,
            "segment-before-cut",
            "the one before is about to be cut to what is in it",
            6,
        ),
        (
            Step::SegmentCut,
            "segment-cut",
            "that is durable: its missing room says that there is another one",
            6,
        ),
        (Step::SegmentNamed, "segment-named", "the new one has its name, and that is not durable", 8),
        (Step::SegmentDurable, "segment-durable", "its name is durable, dead segments are still there", 8),
        (Step::BeforeDelete, "before-delete", "a log is about to be deleted", 4),
        (Step::DeleteNamed, "delete-named", "its directory is renamed, and that is not durable", 4),
        (Step::DeleteDurable, "delete-durable", "that is durable, the files are still there", 4),
        (Step::Deleted, "deleted", "the files are gone, and nobody was told", 4),
    ];

    const SEEDS: u64 = 20;

    const DIRECTORY: &str = "TLOG_TEST_CRASH_DIRECTORY";
    const STEP: &str = "TLOG_TEST_CRASH_STEP";
    const HIT: &str = "TLOG_TEST_CRASH_HIT";

    /// What the process that is to die does at most before that.
    const MOST: u64 = 3000;

    static ARMED: OnceLock<(Step, AtomicU64)> = OnceLock::new();

    /// The process dies here where it was told so.
    pub(in crate::directory) fn reached(step: Step) {
        if let Some((armed, left)) = ARMED.get()
            && *armed == step
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            kill_process(getpid(), Signal::KILL).unwrap();
            std::thread::park(); // until the signal is there
        }
    }

    fn kept() -> VdiskId {
        VdiskId::new("kept").unwrap()
    }

    fn payload(number: u64) -> usize {
        (number * 97 % 5000) as usize
    }

    fn say(text: String) {
        std::io::stdout().write_all(text.as_bytes()).unwrap();
    }

    /// Writes and prunes one log; makes another one and deletes it, again and again.
    async fn work(directory: &Path) {
        let store = open_small_segments(directory);
        let status = store.status(&kept()).await.unwrap();
        let (epoch, first) = (status.epoch.next().0, status.head().next().0);
        say(format!("\nopening {epoch}\n"));
        begin(&store, &kept(), epoch, first).await;
        say(format!("\nepoch {epoch}\n"));
        let mut other = store.status(&disk()).await.unwrap().epoch.next().0;
        for number in first..first + MOST {
            let shard_of = shard(epoch, number, payload(number));
            store.append(&kept(), n(number), shard_of, n(number - 1)).await.unwrap();
            say(format!("\nstored {number} {epoch}\n"));
            if number % 20 == 0 {
                say(format!("\npruning {}\n", number.saturating_sub(30)));
                store.prune(&kept(), Epoch(epoch), n(number.saturating_sub(30).max(1))).await.unwrap();
            }
            if number % 15 == 0 {
                begin(&store, &disk(), other, 1).await;
                for number in 1..=3 {
                    store.append(&disk(), n(number), shard(other, number, 3000), n(number)).await.unwrap();
                }
                say(format!("\nwhole {other}\n"));
                store.delete(&disk(), Epoch(other)).await.unwrap();
                say(format!("\ndeleted {other}\n"));
                other += 1;
            }
        }
    }

    /// What processes that died have said.
    #[derive(Default)]
    struct Heard {
        stored: BTreeMap<u64, u64>,
        epoch: u64,
        pruned: u64,
        whole: u64,
        deleted: u64,
    }

    impl Heard {
        /// Lets a process work until it dies.
        fn listen(&mut self, directory: &Path, step: &str, hit: u64) {
            // A log that is begun after it was deleted counts from the start again.
            (self.whole, self.deleted) = (0, 0);
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "directory::crash::tests::what_was_answered_survives_wherever_the_process_dies",
                ])
                .arg("--nocapture")
                .env(DIRECTORY, directory)
                .env(STEP, step)
                .env(HIT, hit.to_string())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            for line in BufReader::new(child.stdout.take().unwrap()).lines() {
                let line = line.unwrap();
                let words: Vec<&str> = line.split(' ').collect();
                let number = |at: usize| words[at].parse::<u64>().unwrap();
                match (words[0], words.len()) {
                    ("stored", 3) => _ = self.stored.insert(number(1), number(2)),
                    ("epoch", 2) => self.epoch = number(1),
                    ("pruning", 2) => self.pruned = number(1).max(self.pruned),
                    ("whole", 2) => self.whole = number(1),
                    ("deleted", 2) => self.deleted = number(1),
                    _ => {}
                }
            }
            let status = child.wait().unwrap();
            assert_eq!(status.signal(), Some(9), "{step}, hit {hit}: it did not die there: {status}");
        }

        async fn check(&self, store: &DirectoryStore, what: &str) {
            let status = store.status(&kept()).await.unwrap();
            assert!(status.epoch >= Epoch(self.epoch), "{what}: an epoch was forgotten");
            for (&number, &epoch) in self.stored.range(self.pruned..) {
                let slot = store.shard(&kept(), n(number)).await.unwrap();
                assert_eq!(slot, ShardSlot::Held(shard(epoch, number, payload(number))), "{what}, {number}");
            }
            let other = store.status(&disk()).await.unwrap();
            if other.identity.is_some() {
                let epoch = other.epoch.0;
                assert!(epoch > self.deleted, "{what}: log {epoch} came back, {} was deleted", self.deleted);
                let all = epoch > self.whole || held(store).await == [1, 2, 3];
                assert!(all, "{what}: log {epoch} is there in part");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_answered_survives_wherever_the_process_dies() {
        let variable = |name| std::env::var(name).unwrap();
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            let (step, ..) = TABLE.into_iter().find(|(_, name, ..)| *name == variable(STEP)).unwrap();
            ARMED.set((step, AtomicU64::new(variable(HIT).parse().unwrap()))).unwrap();
            return work(directory.as_ref()).await;
        }
        for (_, step, _, last_hit) in TABLE {
            let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let mut heard = Heard::default();
            for seed in 1..=SEEDS {
                let hit = SmallRng::seed_from_u64(seed).random_range(1..=last_hit);
                heard.listen(directory.path(), step, hit);
                let what = format!("{step}, seed {seed}, hit {hit}");
                // Whoever looks first: a reader, or the next writer.
                let store = match seed % 2 {
                    0 => DirectoryStore::open_read_only(directory.path()).unwrap(),
                    _ => open_small_segments(directory.path()),
                };
                heard.check(&store, &what).await;
            }
            assert!(heard.stored.len() > 30, "{step}: hardly anything was written");
        }
    }

    #[test]
    fn the_documentation_has_every_step() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reliability.md");
        let text = std::fs::read_to_string(file).unwrap();
        let lines = TABLE.map(|(_, name, what, _)| format!("| `{name}` | directory store | {what} |"));
        let missing: Vec<&String> = lines.iter().filter(|line| !text.contains(line.as_str())).collect();
        assert!(missing.is_empty(), "docs/reliability.md lacks:\n{missing:#?}");
        let listed = text.lines().skip_while(|line| !line.starts_with("| step |")).skip(2);
        assert_eq!(listed.take_while(|line| line.starts_with('|')).count(), TABLE.len());
        assert_eq!(Step::Deleted as usize + 1, TABLE.len());
    }
}
