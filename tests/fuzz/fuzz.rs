//! The fuzz targets under libFuzzer. One program for all of them, as each would be linked from the whole of ccbt again;
//! the variable `TARGET` says which.
#![no_main]
#![expect(
    dead_code,
    reason = "some of the targets' functions are there for the seeds"
)]

#[path = "targets/mod.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = found else {
        panic!("TARGET is {name:?}, which is no target of tests/fuzz/targets");
    };
    *target
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _taken = TARGET(data);
});
