//! What a client sees on the wire, row by row: replies, codes, texts, order.
//!
//! Every section of the behaviour reference has a file; a test is named like the claim it checks and lists the rows. All of them
//! talk to one broker process (see [`sections::stage`]), so every test uses names of its own and none may disturb the others:
//! that is a part of what is shown.

#[path = "conformance/mod.rs"]
mod sections;
mod support;
