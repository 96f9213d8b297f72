//! Messages of one segment, written where they are to go.
//!
//! The builder of the crate `capnp` makes a message in memory of its own, zeroed first, and what goes out is a copy. For a
//! message whose layout is known before it is written that is two passes over all data too many. The bytes are the
//! same, as the tests of the modules that use this say.
//!
//! ```text
//! pointer to a struct   u32 offset << 2 | 0, u16 words of data, u16 pointers
//! pointer to a list     u32 offset << 2 | 1, u32 count << 3 | kind     (kind 2: bytes, 5: u64, 7: structs, count in words)
//! in front of structs   u32 count << 2, u16 words of data, u16 pointers
//! ```
//! An offset is in words, from behind the pointer.

use bytes::{BufMut, BytesMut};

use crate::wire::words;

/// Most words that a message can have and be of one segment.
const MOST_WORDS: usize = 1 << 29;
/// Most elements that a list can have.
const MOST_ELEMENTS: usize = (1 << 29) - 1;

/// Writes one message to the end of a buffer, word by word.
pub(crate) struct Flat<'a> {
    out: &'a mut BytesMut,
    /// Words that are written.
    written: usize,
    /// Where the next content of a list goes.
    content: usize,
}

impl<'a> Flat<'a> {
    /// Begins a message of so many words, of which `fixed` come before the content of lists. None where it needs more than one
    /// segment, or a list in it is longer than `longest` may be.
    pub(crate) fn begin(
        out: &'a mut BytesMut,
        total: usize,
        fixed: usize,
        longest: usize,
    ) -> Option<Flat<'a>> {
        if total > MOST_WORDS || longest > MOST_ELEMENTS {
            return None;
        }
        out.reserve(8 + total * 8);
        out.put_u32_le(0);
        out.put_u32_le(total as u32);
        Some(Self { out, written: 0, content: fixed })
    }

    /// One word of data.
    pub(crate) fn word(&mut self, word: u64) {
        self.out.put_u64_le(word);
        self.written += 1;
    }

    /// A pointer to the struct that comes right behind it.
    pub(crate) fn struct_pointer(&mut self, data: u16, pointers: u16) {
        self.struct_word(0, data, pointers);
    }

    /// What stands in front of a list of structs, which are to follow.
    pub(crate) fn structs_tag(&mut self, count: usize, data: u16, pointers: u16) {
        self.struct_word((count as u64) << 2, data, pointers);
    }

    fn struct_word(&mut self, low: u64, data: u16, pointers: u16) {
        self.word(low | u64::from(data) << 32 | u64::from(pointers) << 48);
    }

    /// A pointer to bytes, whose turn among the contents is now.
    pub(crate) fn bytes_pointer(&mut self, length: usize) {
        self.list_pointer(2, length, words(length));
    }

    /// Where the next content goes; and leaves room there for what a later pointer leads to, of so many words.
    pub(crate) fn leave_room(&mut self, words: usize) -> usize {
        let at = self.content;
        self.content += words;
        at
    }

    /// A pointer to bytes for which room was left.
    pub(crate) fn bytes_pointer_to(&mut self, at: usize, length: usize) {
        let next = std::mem::replace(&mut self.content, at);
        self.bytes_pointer(length);
        self.content = next;
    }

    /// A pointer to a list of numbers, whose turn among the contents is now.
    pub(crate) fn numbers_pointer(&mut self, count: usize) {
        self.list_pointer(5, count, count);
    }

    /// A pointer to a list of structs of so many words together, whose turn among the contents is now.
    pub(crate) fn structs_pointer(&mut self, words: usize) {
        self.list_pointer(7, words, 1 + words);
    }

    /// A pointer to nothing.
    pub(crate) fn null(&mut self) {
        self.word(0);
    }

    fn list_pointer(&mut self, kind: u64, count: usize, words: usize) {
        let offset = self.content.saturating_sub(self.written + 1) as u64;
        self.content += words;
        self.word(offset << 2 | 1 | kind << 32 | (count as u64) << 35);
    }

    /// The bytes that a pointer leads to, filled up with zeros.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
        self.fill_up(bytes.len());
    }

    /// The same, with the zero that ends a text.
    pub(crate) fn text(&mut self, text: &str) {
        self.out.put_slice(text.as_bytes());
        self.out.put_u8(0);
        self.fill_up(text.len() + 1);
    }

    fn fill_up(&mut self, length: usize) {
        let words = words(length);
        self.out.put_bytes(0, words * 8 - length);
        self.written += words;
    }
}
