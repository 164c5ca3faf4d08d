//! The canonical rendering: `RS role`, then `US part` for each part, RS and US being the ASCII separators 0x1e and 0x1f,
//! which cannot stand in a part: text is written as JSON writes it with the fewest escapes.
//!
//! Nothing comes after the last part, so that a longer conversation's rendering begins with a shorter one's, and so does
//! that of a prompt that was continued.

use super::gather::{Gathered, Piece};

/// Pieces are joined until there is this much, which spares the sink calls for single escapes.
const JOINED_BYTES: usize = 1 << 10;

/// Gives the rendering to `sink`, piece by piece.
pub(super) fn render(gathered: &Gathered<'_>, sink: &mut dyn FnMut(&str)) {
    let mut writer = Writer { sink, joined: String::with_capacity(2 * JOINED_BYTES) };
    for section in gathered.sections() {
        render_section(section, &mut writer);
    }
    writer.flush();
}

fn render_section(pieces: &[Piece<'_>], writer: &mut Writer<'_>) {
    // The role of the message that parts belong to, and the role whose heading was written last.
    let (mut around, mut wanted, mut written) = ("", "", None);
    for piece in pieces {
        match *piece {
            Piece::Role(role) => (around, wanted) = (role, role),
            Piece::Begin(role) => (wanted, written) = (role, None),
            Piece::Back => wanted = around,
            part => {
                if written != Some(wanted) {
                    writer.put("\u{1e}");
                    writer.put(wanted);
                    written = Some(wanted);
                }
                render_part(part, writer);
            }
        }
    }
}

fn render_part(part: Piece<'_>, writer: &mut Writer<'_>) {
    writer.put("\u{1f}");
    match part {
        Piece::Mark(word) => writer.put(word),
        Piece::Text(text) => text.canonical(|piece| writer.put(piece)),
        Piece::Quoted(json) => json.pieces(|piece| writer.put(piece)),
        Piece::Json(json) => writer.put(json),
        Piece::Digest(digest) => writer.put(&format!("#{digest:016x}")),
        Piece::TokenIds(array) => {
            let ids = array.trim_matches(['[', ']', ' ', '\n', '\r', '\t']);
            // Every id with its comma: ids that follow must not change what was written.
            let has_space = ids.bytes().fold(false, |any, byte| any | (byte <= b' '));
            if !has_space && !ids.is_empty() {
                writer.put(ids);
                writer.put(",");
                return;
            }
            for id in ids.split(',').filter(|_| !ids.is_empty()) {
                writer.put(id.trim_ascii());
                writer.put(",");
            }
        }
        Piece::Role(_) | Piece::Begin(_) | Piece::Back => {}
    }
}

struct Writer<'s> {
    sink: &'s mut dyn FnMut(&str),
    joined: String,
}

impl Writer<'_> {
    #[inline]
    fn put(&mut self, piece: &str) {
        if piece.len() >= JOINED_BYTES {
            self.flush();
            (self.sink)(piece);
            return;
        }
        self.joined.push_str(piece);
        if self.joined.len() >= JOINED_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.joined.is_empty() {
            (self.sink)(&self.joined);
            self.joined.clear();
        }
    }
}
