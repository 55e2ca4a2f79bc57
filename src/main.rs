//! The `ccbt` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ccbt::cli::main()
}
