//! What it costs to compute the tokens of a prompt.
//!
//! ```sh
//! cargo bench -p smg-benches --bench tokens
//! ```
//!
//! One thread, medians, with the small tokenizer of the crate's tests. A larger vocabulary makes fewer and longer tokens of the
//! same text.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use smg_base::{Random, SplitMix};
use smg_benches::{Table, nanos};
use smg_tokenizer::{Form, SpecialTokens, Tokenizer};

const TOKENIZER: &[u8] = include_bytes!("../src/tokenizer/cases/tokenizer.json");
const CONFIG: &[u8] = include_bytes!("../src/tokenizer/cases/tokenizer_config.json");
const TEMPLATE: &str = include_str!("../src/tokenizer/cases/chat_template.jinja");

fn main() {
    let tokenizer =
        Tokenizer::from_files(TOKENIZER, Some(CONFIG), Some(TEMPLATE)).expect("the files of the tests are sound");
    let mut table = Table::new("tokens of a prompt", &["text", "tokens", "text alone", "a chat of it", "MB/s"]);
    for kib in [1, 2, 4, 8, 32, 128] {
        let text = text(kib << 10);
        let message = serde_json::json!({ "role": "user", "content": text });
        let body = serde_json::json!({ "model": "m", "messages": [message] }).to_string();
        let tokens = tokenizer.encode(&text, SpecialTokens::Left).map_or(0, |ids| ids.len());
        let alone = nanos(|| tokenizer.encode(&text, SpecialTokens::Left));
        let chat = nanos(|| tokenizer.prompt_tokens(Form::Chat, body.as_bytes(), 0));
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        let speed = text.len() as f64 * 1e3 / alone;
        table.row(vec![
            format!("{kib} KiB"),
            tokens.to_string(),
            format!("{:.0} us", alone / 1e3),
            format!("{:.0} us", chat / 1e3),
            format!("{speed:.1}"),
        ]);
    }
    println!("{table}");
}

/// Words of a few syllables, as many of them different as in a text of that length.
fn text(bytes: usize) -> String {
    const SYLLABLES: [&str; 12] = ["ka", "lo", "mi", "ne", "ru", "the ", "and ", "vo", "shi ", "tion ", "er", ". "];
    let random = SplitMix::new(3);
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        text.push_str(SYLLABLES[usize::try_from(random.below(12)).unwrap_or(0)]);
    }
    text.truncate(bytes);
    text
}
