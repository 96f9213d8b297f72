//! Taking decisions from the bytes of an input, one after the other. Where they are used up all of them are zero.

/// The rest of an input.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// Every other time.
    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Below `bound`, which is at most 256; 0 where that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { usize::from(self.byte()) % bound }
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Any number, and often one of those at which something overflows.
    pub(crate) fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..0xe0 => small.into(),
            power @ 0xe0..0xf0 => 1 << (u64::from(power - 0xe0) * 4 + 3),
            0xf0 => u64::MAX,
            0xf1 => u64::MAX - 1,
            0xf2 => i64::MAX as u64,
            0xf3 => i64::MIN as u64,
            0xf4 => u32::MAX.into(),
            0xf5 => (1 << 53) - 1,
            _ => self.array().map_or(0, u64::from_le_bytes),
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*first)
    }

    /// The next ones; fewer where there are not so many left.
    pub(crate) fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (first, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        first
    }

    /// What is left, and nothing of it is left then.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }
}
