//! Forms with files (RFC 7578), as the audio endpoints take them.

use smg_base::hash;

/// Parts of a form; more make it no form.
const PARTS_MAX: usize = 64;
/// Bytes of a field's text; a longer one is taken for a file.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A form that was sent.
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: Vec<(String, String)>,
    /// The file, if there is one.
    pub(crate) file: Option<File>,
}

/// A file of a form.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) bytes: usize,
    pub(crate) digest: u64,
}

impl Form {
    /// The form in `body`; `None` if the content type or the body is not one.
    pub(crate) fn parse(content_type: &str, body: &[u8]) -> Option<Self> {
        let (media, parameters) = content_type.split_once(';')?;
        if !media.trim().eq_ignore_ascii_case("multipart/form-data") {
            return None;
        }
        let boundary = parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="))?;
        let delimiter = format!("\r\n--{}", boundary.trim_matches('"'));
        let finder = memchr::memmem::Finder::new(&delimiter);
        // The first delimiter has no line before it.
        let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..])?;
        let mut form = Self::default();
        for _ in 0..PARTS_MAX {
            if rest.starts_with(b"--") {
                return Some(form);
            }
            rest = rest.strip_prefix(b"\r\n")?;
            let end = finder.find(rest)?;
            form.part(&rest[..end])?;
            rest = &rest[end + delimiter.len()..];
        }
        None
    }

    /// The text of the field called `name`.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, text)| text.as_str())
    }

    fn part(&mut self, part: &[u8]) -> Option<()> {
        let head_end = memchr::memmem::find(part, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&part[..head_end]).ok()?;
        let content = &part[head_end + 4..];
        let mut lines = head.split("\r\n");
        let disposition = lines
            .find(|line| line.get(..20).is_some_and(|start| start.eq_ignore_ascii_case("content-disposition:")))?;
        let parameter = |name: &str| {
            let quoted =
                |text: &str| text.trim().strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"').map(str::to_owned);
            disposition.split(';').find_map(quoted)
        };
        match (parameter("filename"), std::str::from_utf8(content)) {
            (None, Ok(text)) if content.len() <= TEXT_BYTES_MAX => {
                self.fields.push((parameter("name")?, text.to_owned()));
            }
            _ => self.file = Some(File { bytes: content.len(), digest: hash::stable64(content) }),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=xyz";
    const FORM: &[u8] = b"--xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ndemo\r\n--xyz\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n\r\n-\r\n--xyz--\r\n";

    #[test]
    fn fields_and_the_file_are_told_apart() {
        let form = Form::parse(TYPE, FORM).unwrap();
        assert_eq!(form.text("model"), Some("demo"));
        assert_eq!(form.text("file"), None);
        assert_eq!(form.file.unwrap().bytes, 9);
    }

    #[test]
    fn what_is_no_form_is_none() {
        assert!(Form::parse("application/json", FORM).is_none());
        assert!(Form::parse("multipart/form-data; boundary=abc", FORM).is_none());
        assert!(Form::parse(TYPE, &FORM[..FORM.len() - 8]).is_none());
    }

    #[test]
    fn no_bytes_bring_it_down() {
        let random = SplitMix::new(11);
        for _ in 0..20_000 {
            let mut bytes = FORM.to_vec();
            for _ in 0..=random.below(6) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            bytes.truncate(usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap());
            let _ = Form::parse(TYPE, &bytes);
        }
    }
}
