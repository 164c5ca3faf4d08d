//! (skeleton)

#[cfg(test)]
mod tidy;

fn main() {}
