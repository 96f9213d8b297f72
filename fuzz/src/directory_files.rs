//! Files of a directory store that say what its writer never wrote, with checksums that fit or do not: damage is told, nothing is taken
//! for whole that is not, and the store can be opened for reading and for writing.

use std::fs;

use tlog_proto::{AggregationId, AggregationNumber, Epoch, VdiskId};
use tlog_store::{DirectoryOptions, DirectoryStore, HeadSlot, ShardSlot, ShardStore};
use tokio::runtime::{Builder, Runtime};

use crate::Target;
use crate::input::Input;

/// How the store is opened, and what its segments say.
pub const TARGET: Target = Target { name: "directory-files", memory: 4 << 20, check, seeds };

/// Bytes of a header; `docs/directory-store.md` and the store's own tests say what is in it.
const HEADER: usize = 120;

/// Where in it the id is.
const ID: std::ops::Range<usize> = 56..88;

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let vdisk = VdiskId::new("v").unwrap();
    let how = input.byte();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of_vdisk = folder.path().join(vdisk.as_str());
    fs::create_dir(&of_vdisk).expect("a folder in a temporary one");
    for segment in 1..=1 + u64::from(how >> 6) {
        let bytes = match how & 1 {
            0 => records(&vdisk, segment, &mut input),
            _ => input.bytes(2048).to_vec(),
        };
        fs::write(of_vdisk.join(format!("{segment:020}.seg")), bytes).expect("a file in a temporary folder");
    }
    let store = match how & 2 {
        0 => DirectoryStore::open_read_only(folder.path()),
        _ => DirectoryStore::open(folder.path(), DirectoryOptions::default()),
    };
    let store = store.expect("nobody else has it");
    here(look(&store, &vdisk));
    // A writer begins each segment with the whole state, so that it may delete one before; here only the first begins so.
    if how & 4 == 4 && how & 2 == 2 && how >> 6 == 0 {
        let before = here(look(&store, &vdisk));
        drop(store);
        let store = DirectoryStore::open(folder.path(), DirectoryOptions::default());
        let after = here(look(&store.expect("nobody else has it"), &vdisk));
        assert_eq!(before, after, "opened again");
    }
}

/// On a runtime that keeps the thread which touches files.
fn here<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime without sockets");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// Everything that a reader may ask for. Answers what is whole.
async fn look(store: &DirectoryStore, vdisk: &VdiskId) -> Vec<(u64, Epoch)> {
    let mut whole = Vec::new();
    let Ok(state) = store.status(vdisk).await else { return whole };
    let _ = store.vdisks().await;
    let numbers: Vec<u64> = state.held.iter().flat_map(|run| [run.start().0, run.end().0]).take(8).collect();
    for number in numbers {
        let number = AggregationNumber(number);
        if let Ok(ShardSlot::Held(shard)) = store.shard(vdisk, number).await {
            assert!(is_what_was_made(&shard.id, 0, &shard.head), "another head part than was written");
            assert!(is_what_was_made(&shard.id, 4, &shard.payload), "another payload than was written");
            whole.push((number.0, shard.epoch));
        }
        for (_, slot) in store.heads(vdisk, number..=number, 1 << 20).await.unwrap_or_default() {
            if let HeadSlot::Held(head) = slot {
                assert!(is_what_was_made(&head.id, 0, &head.head), "another head part than was written");
            }
        }
        let _ = store.payload_parts(vdisk, number, &[0..1, 7..9]).await;
    }
    whole
}

/// Whether bytes have the checksum that stands in an id of a shard that was made here.
fn is_what_was_made(AggregationId(id): &AggregationId, at: usize, bytes: &[u8]) -> bool {
    id[31] != MADE || id[at..at + 4] == crc32c::crc32c(bytes).to_le_bytes()
}

/// Marks ids that say what their shard must be: the checksums of head part and payload stand in them.
const MADE: u8 = 0xa5;

/// Records behind each other, as a writer would write them, but for what the input says otherwise.
fn records(vdisk: &VdiskId, segment: u64, input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut link = crc32c::crc32c_append(crc32c::crc32c(vdisk.as_str().as_bytes()), &segment.to_le_bytes());
    let mut before = (0, 0, 0);
    for _ in 0..input.below(12) {
        let kind = 1 + input.below(3) as u32;
        let (epoch, committed) = (input.number(), input.number());
        let (number, of_shard) = if kind == 2 { (input.number(), input.number()) } else { (0, 0) };
        let head = match kind {
            1 => state(input),
            2 => vec![input.byte(); input.below(60)],
            _ => Vec::new(),
        };
        let payload = if kind == 2 { vec![input.byte(); input.below(250)] } else { Vec::new() };
        let mut id = [0; 32];
        if kind == 2 {
            id[..4].copy_from_slice(&crc32c::crc32c(&head).to_le_bytes());
            id[4..8].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
            id[31] = MADE;
        }
        let mut header = b"tls\x01".to_vec();
        let batch = if input.flag() { bytes.len() as u32 } else { input.number() as u32 };
        for field in [kind, head.len() as u32, payload.len() as u32, batch, link] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        for field in [number, of_shard, epoch, committed] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        header.extend_from_slice(&id);
        let (number_before, epoch_before, length_before) = before;
        header.extend_from_slice(&u64::to_le_bytes(number_before));
        header.extend_from_slice(&u64::to_le_bytes(epoch_before));
        for field in [length_before, crc32c::crc32c(&head), crc32c::crc32c(&payload)] {
            header.extend_from_slice(&u32::to_le_bytes(field));
        }
        // Some other value in some field, under a checksum that fits.
        if input.below(4) == 1 {
            let (at, value) = (4 + input.below(HEADER - 8), input.byte());
            if !ID.contains(&at) {
                header[at] = value;
            }
        }
        link = crc32c::crc32c(&header);
        header.extend_from_slice(&link.to_le_bytes());
        let at = bytes.len();
        bytes.extend([header, head, payload].concat());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        before = (number, of_shard, (bytes.len() - at) as u32);
        // A bit that rots.
        if input.below(8) == 1 {
            let rotten = at + usize::from(input.byte()) % (bytes.len() - at);
            bytes[rotten] ^= 1 << input.below(8);
        }
    }
    bytes.resize(bytes.len() + input.below(64) * 8, 0);
    bytes
}

/// The body of a state.
fn state(input: &mut Input<'_>) -> Vec<u8> {
    let mut state = vec![input.byte(); 16];
    for _ in 0..3 {
        state.extend_from_slice(&input.number().to_le_bytes());
    }
    let starts = input.below(4);
    let claimed = if input.below(8) == 1 { input.number() as u32 } else { starts as u32 };
    state.extend_from_slice(&claimed.to_le_bytes());
    for _ in 0..starts {
        for _ in 0..3 {
            state.extend_from_slice(&input.number().to_le_bytes());
        }
        state.extend_from_slice(&(input.number() as u32).to_le_bytes());
    }
    for _ in 0..2 {
        state.extend_from_slice(&input.number().to_le_bytes());
    }
    state.extend_from_slice(&[input.byte(), input.byte()]);
    let members = input.below(4);
    let claimed = if input.below(8) == 1 { input.number() as u32 } else { members as u32 };
    state.extend_from_slice(&claimed.to_le_bytes());
    for _ in 0..members {
        state.push(input.byte() & 1);
        state.extend_from_slice(&[input.byte(); 16]);
    }
    state
}

fn seeds() -> Vec<Vec<u8>> {
    let state: &[u8] = &[0, 1, 0, 0x11, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let shard = |number: u8| vec![1, 1, number, number, 1, 7, 20, 9, 100, 1, 0, 0];
    let mark: &[u8] = &[2, 1, 2, 1, 0, 0];
    let log = [&[5], state, &shard(1), &shard(2), mark, &shard(3), &[9]].concat();
    let of = |how: u8| [&[how], &log[..]].concat();
    vec![of(0), of(2), of(6), of(0x40), of(0x46), [&[1], &b"tls\x01"[..], &[0; 200]].concat(), vec![1]]
}
