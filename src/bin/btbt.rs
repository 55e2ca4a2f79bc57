//! The `btbt` command: `ccbt` by another name, for hands that type it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ccbt::cli::main()
}
