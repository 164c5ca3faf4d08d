//! What the prefix index costs: a lookup, an event, a block; and whether its answers are right.
//!
//! ```sh
//! cargo bench -p smg-benches --bench prefix
//! ```
//!
//! Indexes published as crates are measured in the same way by the package in `rivals/`, in one run with this one.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use smg_benches::{
    Table,
    indexes::{self, Index as _, Runs},
};

fn main() {
    let content = indexes::content();
    println!("prefix index: one thread, one more where a writer is named\n");
    println!("{}", memory(&content));
    let index = Runs::default();
    indexes::fill(&index, &content);
    let measured = indexes::measure(&[indexes::entrant(&index)]);
    println!("{}\n{}", indexes::table_of_lookups(&measured), indexes::table_of_events(&measured));
}

/// What a block takes, with and without the means to find it by its hash.
fn memory(content: &[(usize, Vec<u64>)]) -> Table {
    let mut table = Table::new(
        &format!("memory, bytes a block of {}", indexes::blocks()),
        &["", "as allocated", "as the index counts", "of these to find chunks"],
    );
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let per_block = |bytes: u64| format!("{:.1}", bytes as f64 / indexes::blocks() as f64);
    for name in ["held by prediction", "held by events"] {
        let mut index = None;
        let counted = allocation_counter::measure(|| {
            let filled = index.insert(Runs::default());
            for (worker, text) in content {
                filled.store(*worker, None, text);
            }
            if name == "held by events" {
                // The first question for a chunk makes the index able to answer it.
                filled.store(content[0].0, content[0].1.last().copied(), &[1]);
            }
        });
        let size = index.map(|index| index.index().size()).unwrap_or_default();
        table.row(vec![
            format!("{name}, {} runs", size.runs),
            per_block(u64::try_from(counted.bytes_current).unwrap_or(0)),
            per_block(size.bytes as u64),
            per_block(size.bytes_of_places as u64),
        ]);
    }
    table
}
