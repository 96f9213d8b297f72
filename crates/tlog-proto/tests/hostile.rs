//! Every decoder of whole messages, given what no honest peer sends. None may panic, and what is not a message must
//! be refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use proptest::prelude::*;
use support::{
    Decoder, aggregation, bytes_of, decoders, delete, in_segments_of, message_of_words, response, set,
};
use tlog_proto::{
    Aggregation, AggregationError, BlockFault, BlockStatus, ClientMessage, DecodeError, FrameError, Limits,
    MessageType, Response, Sequence, UnknownMessageType, UnknownStatus, UnverifiedBlock,
};

/// Pointer to a struct that begins `offset` words behind the pointer.
fn struct_pointer(offset: i32, data: u16, pointers: u16) -> u64 {
    u64::from((offset << 2) as u32) | u64::from(data) << 32 | u64::from(pointers) << 48
}

/// Pointer to a list; `kind` 0 empty, 1 bits, 2 to 5 of 1, 2, 4, 8 bytes, 6 pointers, 7 structs (`size` in words).
fn list_pointer(offset: i32, kind: u64, size: u64) -> u64 {
    u64::from((offset << 2) as u32 | 1) | kind << 32 | size << 35
}

/// Pointer to a landing pad in another segment.
fn far_pointer(segment: u64, at_word: u64, double: bool) -> u64 {
    2 | u64::from(double) << 2 | at_word << 3 | segment << 32
}

#[track_caller]
fn refused(decoder: &Decoder, bytes: &[u8], how: &str) {
    if let Ok(decoded) = (decoder.decode)(bytes) {
        panic!("{} accepts what is {how}: {decoded}", decoder.name);
    }
}

#[test]
fn a_message_cut_at_any_byte_or_followed_by_any_byte_is_refused() {
    for decoder in decoders() {
        for sample in [decoder.sample.clone(), in_segments_of(3, &decoder.sample)] {
            (decoder.decode)(&sample).unwrap();
            for length in 0..sample.len() {
                refused(&decoder, &sample[..length], "cut");
            }
            refused(&decoder, &[&sample[..], &[0]].concat(), "longer than a message");
            refused(&decoder, &[&sample[..], &[0; 8]].concat(), "longer than a message");
        }
    }
}

#[test]
fn a_message_cut_at_any_word_is_refused_also_where_its_table_says_so() {
    for decoder in decoders() {
        let words = (decoder.sample.len() - 8) / 8;
        for left in 0..words {
            let mut cut = decoder.sample[..8 + left * 8].to_vec();
            cut[4..8].copy_from_slice(&(left as u32).to_le_bytes());
            refused(&decoder, &cut, "cut with its table");
        }
    }
}

#[test]
fn a_segment_table_that_lies_is_refused() {
    for decoder in decoders() {
        let table = |last_segment: u32, first_words: u32| {
            let mut lying = decoder.sample.clone();
            lying[..4].copy_from_slice(&last_segment.to_le_bytes());
            lying[4..8].copy_from_slice(&first_words.to_le_bytes());
            lying
        };
        let words = ((decoder.sample.len() - 8) / 8) as u32;
        for last_segment in [1, 63, 510, 511, 512, u32::MAX - 1, u32::MAX] {
            refused(&decoder, &table(last_segment, words), "of more segments than there are");
        }
        for first_words in [words + 1, 1 << 28, 1 << 29, u32::MAX] {
            refused(&decoder, &table(0, first_words), "shorter than it says");
        }
    }
}

#[test]
fn a_root_that_is_no_struct_within_the_message_is_refused() {
    let roots = [
        ("a list", list_pointer(0, 5, 2)),
        ("a capability", 3),
        ("outside, behind", struct_pointer(100, 1, 1)),
        ("outside, before", struct_pointer(-2, 1, 1)),
        ("outside, far before", struct_pointer(-(1 << 29), 1, 1)),
        ("too long", struct_pointer(0, u16::MAX, 0)),
        ("of too many pointers", struct_pointer(0, 0, u16::MAX)),
        ("in a segment that is not there", far_pointer(1, 0, false)),
        ("in a segment that is far from there", far_pointer(u64::from(u32::MAX), 0, false)),
        ("outside its segment", far_pointer(0, 100, false)),
        ("farthest outside its segment", far_pointer(0, (1 << 29) - 1, true)),
        ("a pointer to itself", far_pointer(0, 0, false)),
    ];
    for decoder in decoders() {
        for (how, root) in roots {
            refused(&decoder, &message_of_words(&[root, 0, 0, 0]), how);
        }
        let far_list = [far_pointer(0, 2, true), 0, far_pointer(0, 0, false), list_pointer(0, 5, 0)];
        refused(&decoder, &message_of_words(&far_list), "a list, by way of two pointers");
        refused(&decoder, &message_of_words(&[]), "without a root");
    }
}

#[test]
fn a_message_without_content_is_what_its_defaults_mean() {
    let empty = message_of_words(&[0]);
    for decoder in decoders() {
        match decoder.name {
            "ClientMessage of a block" => {
                let message = ClientMessage::decode(MessageType::TlogBlock, &empty).unwrap();
                let ClientMessage::Block(block) = message else { panic!("{message:?}") };
                assert_eq!(block.verify().unwrap_err(), BlockFault::UnknownOperation(0));
            }
            // The type byte has said what they are, and 0 is a sequence.
            "ClientMessage of a force flush" | "ClientMessage of a wait for the slave" => {
                (decoder.decode)(&empty).unwrap();
            }
            _ => refused(&decoder, &empty, "empty"),
        }
    }
}

#[test]
fn a_list_of_another_kind_is_refused_wherever_one_is_read() {
    // Where in the sample the pointer is, and the kinds that are right there. A list of structs with at least the
    // right content may stand for a list of numbers (the format's rules of evolution), so 7 is not tried there.
    let check = |name: &str, pointer_at: usize, right: &[u64]| {
        let decoder = decoders().into_iter().find(|decoder| decoder.name == name).unwrap();
        let at = 8 + pointer_at * 8;
        let pointer = u64::from_le_bytes(decoder.sample[at..at + 8].try_into().unwrap());
        assert_eq!(pointer & 3, 1, "no pointer to a list at word {pointer_at} of {name}");
        for kind in (0..8).filter(|kind| !right.contains(kind)) {
            let mut changed = decoder.sample.clone();
            let pointer = pointer & !(7 << 32) | kind << 32;
            changed[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
            refused(&decoder, &changed, &format!("a list of kind {kind}"));
        }
        for (how, pointer) in [("a struct", struct_pointer(0, 1, 0)), ("a capability", 3)] {
            let mut changed = decoder.sample.clone();
            changed[at..at + 8].copy_from_slice(&u64::to_le_bytes(pointer));
            refused(&decoder, &changed, how);
        }
    };
    check("HandshakeRequest", 6, &[2]);
    check("Response", 2, &[5, 7]);
    check("ClientMessage of a block", 5, &[2]);
    check("ClientMessage of a block", 6, &[2]);
    for (pointer_at, right) in [(3, 2), (4, 2), (5, 7), (6, 2)] {
        check("Aggregation", pointer_at, &[right]);
    }
}

#[test]
fn a_text_without_its_zero_is_refused() {
    let decoder = &decoders()[0];
    let mut sample = decoder.sample.clone();
    let zero = sample.iter().rposition(|&byte| byte == b'g').unwrap() + 1;
    sample[zero] = b'x';
    refused(decoder, &sample, "a text without its zero");
}

#[test]
fn a_list_of_elements_that_take_no_room_is_refused_whatever_its_length() {
    const MOST: u64 = (1 << 29) - 1;
    for size in [1000, MOST] {
        let void = [struct_pointer(0, 1, 1), 2, list_pointer(0, 0, size)];
        let empty_structs =
            [struct_pointer(0, 1, 1), 2, list_pointer(0, 7, 0), struct_pointer(size as i32, 0, 0)];
        for words in [&void[..], &empty_structs] {
            Response::decode(&message_of_words(words)).unwrap_err();
        }
        let void = [struct_pointer(0, 2, 4), size, 0, 0, 0, list_pointer(1, 0, size), 0];
        let empty_structs = [
            struct_pointer(0, 2, 4),
            size,
            0,
            0,
            0,
            list_pointer(1, 7, 0),
            0,
            struct_pointer(size as i32, 0, 0),
        ];
        for words in [&void[..], &empty_structs] {
            Aggregation::decode(&message_of_words(words)).unwrap_err();
        }
    }
}

#[test]
fn many_blocks_that_share_their_data_are_refused_before_they_are_worked_on() {
    // 200 blocks that all lead to the same 4 KiB: 14 KiB of message that would become 800 KiB.
    let (count, shared) = (200, set(1, 1, 1, vec![7; 4096]));
    let one = bytes_of(|out| aggregation(vec![shared], &[]).encode_into(out));
    let words: Vec<u64> =
        one[8..].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    let tag = words.iter().position(|&word| word == struct_pointer(1, 4, 2)).unwrap();
    let (head, rest) = words.split_at(tag);
    let (block, content) = rest[1..].split_at(6);
    let mut all = head.to_vec();
    all[1] = count;
    let list = all.iter().position(|&word| word == list_pointer((tag - 6) as i32, 7, 6)).unwrap();
    all[list] = list_pointer((tag - 6) as i32, 7, 6 * count);
    all.push(struct_pointer(count as i32, 4, 2));
    for i in 0..count {
        let further = ((count - 1 - i) * 6) << 2;
        all.extend_from_slice(&block[..4]);
        all.extend([block[4] + further, block[5] + further]);
    }
    all.extend_from_slice(content);
    let error = Aggregation::decode(&message_of_words(&all)).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("limit"), "{error}");
}

#[test]
fn an_aggregation_with_another_size_than_it_has_blocks_is_refused() {
    let blocks = vec![set(1, 1, 1, "a"), delete(2, 2, 2)];
    let mut bytes = bytes_of(|out| aggregation(blocks, &[]).encode_into(out));
    for size in [0, 1, 3, u64::MAX] {
        bytes[16..24].copy_from_slice(&u64::to_le_bytes(size));
        let error = Aggregation::decode(&bytes).unwrap_err();
        let AggregationError::BlockCount { claimed, actual } = error else { panic!("{error}") };
        assert_eq!((claimed, actual), (size, 2));
    }
}

#[test]
fn an_aggregation_with_a_block_that_is_not_whole_is_refused_with_its_sequence() {
    let mut damaged = set(8, 1, 1, "abc");
    damaged.data = "abd".into();
    let bytes = bytes_of(|out| aggregation(vec![set(7, 1, 1, "a"), damaged], &[]).encode_into(out));
    let error = Aggregation::decode(&bytes).unwrap_err();
    let AggregationError::Block { sequence, fault } = error else { panic!("{error}") };
    assert_eq!((sequence, fault.kind()), (Sequence(8), "wrong_hash"));
}

#[test]
fn type_bytes_that_mean_nothing_are_refused() {
    let message = bytes_of(|out| ClientMessage::WaitNbdSlaveSync.encode_into(out));
    for byte in [0].into_iter().chain(4..=255) {
        assert_eq!(MessageType::try_from(byte), Err(UnknownMessageType(byte)));
        let mut changed = message.clone();
        changed[0] = byte;
        let error = ClientMessage::decode_from_slice(&changed, &Limits::default()).unwrap_err();
        assert!(matches!(error, FrameError::UnknownMessageType(UnknownMessageType(found)) if found == byte));
    }
}

#[test]
fn a_client_message_cut_at_any_byte_is_truncated_and_one_that_lies_is_refused_at_once() {
    let message = bytes_of(|out| set(1, 2, 3, vec![1; 50]).encode_into(out));
    for length in 0..message.len() {
        let error = ClientMessage::decode_from_slice(&message[..length], &Limits::default()).unwrap_err();
        assert!(matches!(error, FrameError::Truncated), "{length}: {error}");
    }
    let lying = |table: &[u32]| {
        let table = table.iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = [1].into_iter().chain(table).collect();
        ClientMessage::decode_from_slice(&bytes, &Limits::default()).unwrap_err()
    };
    assert_eq!(lying(&[u32::MAX]).kind(), "too_many_segments");
    assert_eq!(lying(&[64]).kind(), "too_many_segments");
    assert_eq!(lying(&[63]).kind(), "truncated");
    assert_eq!(lying(&[0, u32::MAX]).kind(), "too_large");
    assert_eq!(lying(&[[63].as_slice(), &[u32::MAX; 64]].concat()).kind(), "too_large");
    let limits = Limits { max_segments: usize::MAX, ..Limits::default() };
    let bytes = [[1].as_slice(), &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    let error = ClientMessage::decode_from_slice(&bytes, &limits).unwrap_err();
    assert_eq!(error.kind(), "too_large");
}

#[test]
fn a_status_that_is_not_known_is_refused_by_its_number() {
    let mut bytes = bytes_of(|out| response(BlockStatus::FlushOk, []).encode_into(out));
    for status in [0_i8, 5, -3, i8::MIN, i8::MAX] {
        bytes[16] = status as u8;
        let error = Response::decode(&bytes).unwrap_err();
        assert!(matches!(error, DecodeError::UnknownStatus(UnknownStatus(found)) if found == status));
    }
}

#[test]
fn a_block_with_a_hash_of_another_length_has_none() {
    for length in [0, 1, 31, 33, 64] {
        let mut bytes = bytes_of(|out| set(1, 2, 3, vec![9; 64]).encode_into(out));
        // The pointer to the hash is the first behind the 4 words of data; 64 bytes reach into the data.
        let pointer = list_pointer(1, 2, length);
        bytes[1 + 48..1 + 56].copy_from_slice(&pointer.to_le_bytes());
        let (message, _) = ClientMessage::decode_from_slice(&bytes, &Limits::default()).unwrap();
        let ClientMessage::Block(block) = message else { panic!("{message:?}") };
        assert_eq!(block.verify().unwrap_err(), BlockFault::NoHash);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn flipped_bits_make_no_decoder_panic(
        which: prop::sample::Index,
        words in prop::option::of(1..12u32),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
    ) {
        let decoders = decoders();
        let decoder = which.get(&decoders);
        let mut bytes = decoder.sample.clone();
        if let Some(words) = words {
            bytes = in_segments_of(words, &bytes);
        }
        for flip in flips {
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let _ = (decoder.decode)(&bytes);
    }

    #[test]
    fn a_flipped_bit_in_the_data_or_hash_of_a_block_is_found(at: prop::sample::Index) {
        let mut bytes = bytes_of(|out| set(1, 2, 3, vec![9; 64]).encode_into(out));
        let content = 1 + 8 + 7 * 8; // type byte, table, root, struct; then hash and data
        let bit = at.index((bytes.len() - content) * 8);
        bytes[content + bit / 8] ^= 1 << (bit % 8);
        let (message, _) = ClientMessage::decode_from_slice(&bytes, &Limits::default()).unwrap();
        let verified = match message {
            ClientMessage::Block(block) => UnverifiedBlock::verify(block),
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(verified.unwrap_err().kind(), "wrong_hash");
    }

    #[test]
    fn words_at_random_make_no_decoder_panic(words in prop::collection::vec(word(), 0..40)) {
        let bytes = message_of_words(&words);
        for decoder in decoders() {
            let _ = (decoder.decode)(&bytes);
        }
    }

    #[test]
    fn bytes_at_random_make_no_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for decoder in decoders() {
            let _ = (decoder.decode)(&bytes);
        }
        let _ = ClientMessage::decode_from_slice(&bytes, &Limits::default());
    }
}

/// A word that often is a pointer within a short message.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..300u64,
        (-20..20i32, 0..8u16, 0..8u16)
            .prop_map(|(offset, data, pointers)| struct_pointer(offset, data, pointers)),
        (-20..20i32, 0..8u64, 0..100u64).prop_map(|(offset, kind, size)| list_pointer(offset, kind, size)),
        (0..3u64, 0..40u64, any::<bool>()).prop_map(|(segment, at, double)| far_pointer(segment, at, double)),
    ]
}
