//! Golden bytes and properties of META records.
