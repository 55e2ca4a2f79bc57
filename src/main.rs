//! The `ccbt` command.

fn main() {}
