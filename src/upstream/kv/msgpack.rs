//! Reading msgpack in place: nothing is allocated for what a length promises, only for what is there.

use super::Malformed;

/// One item; what a list or a map holds follows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Item<'a> {
    Nil,
    Bool(bool),
    /// An integer; a signed one in two's complement.
    Int(u64),
    Float(f64),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
    List(u32),
    Map(u32),
    Extension,
}

/// A place in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads the next item.
    pub(crate) fn item(&mut self) -> Result<Item<'a>, Malformed> {
        let code = self.take(1)?[0];
        Ok(match code {
            0x00..=0x7f => Item::Int(u64::from(code)),
            0x80..=0x8f => Item::Map(u32::from(code & 0x0f)),
            0x90..=0x9f => Item::List(u32::from(code & 0x0f)),
            0xa0..=0xbf => Item::Text(self.take(usize::from(code & 0x1f))?),
            0xc0 => Item::Nil,
            0xc1 => return Err(Malformed),
            0xc2 | 0xc3 => Item::Bool(code == 0xc3),
            0xc4..=0xc6 => {
                let length = self.length(1 << (code - 0xc4))?;
                Item::Bytes(self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (code - 0xc7))?;
                self.extension(length)?
            }
            0xca => Item::Float(f64::from(f32::from_be_bytes(self.array()?))),
            0xcb => Item::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Item::Int(u64::from(u8::from_be_bytes(self.array()?))),
            0xcd => Item::Int(u64::from(u16::from_be_bytes(self.array()?))),
            0xce => Item::Int(u64::from(u32::from_be_bytes(self.array()?))),
            0xcf => Item::Int(u64::from_be_bytes(self.array()?)),
            0xd0 => Item::Int(i64::from(i8::from_be_bytes(self.array()?)).cast_unsigned()),
            0xd1 => Item::Int(i64::from(i16::from_be_bytes(self.array()?)).cast_unsigned()),
            0xd2 => Item::Int(i64::from(i32::from_be_bytes(self.array()?)).cast_unsigned()),
            0xd3 => Item::Int(u64::from_be_bytes(self.array()?)),
            0xd4..=0xd8 => self.extension(1 << (code - 0xd4))?,
            0xd9..=0xdb => {
                let length = self.length(1 << (code - 0xd9))?;
                Item::Text(self.take(length)?)
            }
            0xdc => Item::List(u32::from(u16::from_be_bytes(self.array()?))),
            0xdd => Item::List(u32::from_be_bytes(self.array()?)),
            0xde => Item::Map(u32::from(u16::from_be_bytes(self.array()?))),
            0xdf => Item::Map(u32::from_be_bytes(self.array()?)),
            0xe0..=0xff => Item::Int(i64::from(code.cast_signed()).cast_unsigned()),
        })
    }

    /// Passes over the next item and all it holds; gives back where it began.
    pub(crate) fn skip(&mut self) -> Result<Self, Malformed> {
        let began = *self;
        let mut ahead = 1_u64;
        // Each item takes a byte, so this ends with the message at the latest.
        while ahead > 0 {
            ahead = ahead - 1
                + match self.item()? {
                    Item::List(items) => u64::from(items),
                    Item::Map(pairs) => 2 * u64::from(pairs),
                    _ => 0,
                };
        }
        Ok(began)
    }

    /// Whether all was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn extension(&mut self, length: usize) -> Result<Item<'a>, Malformed> {
        self.take(length.saturating_add(1))?;
        Ok(Item::Extension)
    }

    fn length(&mut self, bytes: usize) -> Result<usize, Malformed> {
        Ok(self.take(bytes)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Malformed)?;
        self.rest = rest;
        Ok(*array)
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }
}
