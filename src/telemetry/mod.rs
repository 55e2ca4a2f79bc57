//! Logs and metrics.
//!
//! Logs go through `tracing`: one line of text or JSON an event, to stderr or to `ccbt.log` in the state directory.
//! Metrics are counters and gauges in one struct ([`metrics`]), read by `ccbt status --json` and `GET /v1/metrics`.

mod file;
pub mod metrics;

use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

pub use metrics::Metrics;

use crate::api::ApiError;
use file::LogFile;

/// How to log.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions<'a> {
    /// `error`, `warn`, `info`, `debug` or `trace`: for our own crates. Others speak from `warn` on, at `trace` from `debug` on.
    pub level: &'a str,
    pub json: bool,
    /// The file to append to; stderr if `None`.
    pub file: Option<&'a Path>,
}

/// Starts logging for the process. Called once, before anything logs; a second call has no effect.
pub fn init(options: LogOptions<'_>) -> Result<(), ApiError> {
    match options.file {
        None => install(options, std::io::stderr),
        Some(path) => {
            let file = LogFile::open(path).map_err(|error| {
                let path = crate::api::escape(path.as_os_str().as_encoded_bytes());
                ApiError::io(format_args!("cannot write the log file {path}"), &error)
            })?;
            install(options, file);
        }
    }
    Ok(())
}

fn install<W>(options: LogOptions<'_>, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter(options.level)))
        .with_ansi(false)
        .with_writer(writer);
    let installed = if options.json {
        builder.json().finish().try_init()
    } else {
        builder.finish().try_init()
    };
    // Only tests install twice; the first one stays.
    drop(installed);
}

fn filter(level: &str) -> String {
    let others = match level {
        "error" => "error",
        "trace" => "debug",
        _ => "warn",
    };
    format!("{others},ccbt={level},ccbt_xet={level},ccbt_mount={level}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_makes_a_filter_that_parses() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            let parsed = EnvFilter::builder().parse(filter(level)).unwrap();
            assert!(
                parsed.to_string().contains(&format!("ccbt={level}")),
                "{parsed}"
            );
        }
    }
}
