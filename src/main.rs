//! A binary of StrataMQ.
fn main() {}
