//! The progress bar: on a terminal only, on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::options::{Context, GlobalOptions};
use super::output::{self, Output};
use crate::api::types::Progress;
use crate::api::{ProgressReport, escape};

/// Often enough to look alive.
const TICK: Duration = Duration::from_millis(200);

const BAR: &str = "{msg} [{bar:24}] {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left";
const SPINNER: &str = "{spinner} {msg} {bytes} {elapsed}";

/// Shows the progress of one call; gone when dropped.
pub(super) struct Bar(Option<ProgressBar>);

impl Bar {
    pub(super) fn new(context: &Context) -> Self {
        Self::for_command(&context.global, context.output)
    }

    /// For a command that needs no daemon.
    pub(super) fn for_command(global: &GlobalOptions, output: Output) -> Self {
        let shown = output::stderr_is_terminal() && !global.quiet && !output.json;
        Self(shown.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(SPINNER));
            bar.enable_steady_tick(TICK);
            bar
        }))
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl ProgressReport for Bar {
    fn report(&self, progress: Progress) {
        let Some(bar) = &self.0 else { return };
        match progress.bytes_total {
            Some(total) if bar.length() != Some(total) => {
                bar.set_style(style(BAR));
                bar.set_length(total);
            }
            _ => {}
        }
        bar.set_message(message(&progress));
        bar.set_position(progress.bytes_done);
    }
}

fn message(progress: &Progress) -> String {
    let note = escape(progress.note.as_bytes());
    match (progress.files_done, progress.files_total) {
        (0, None) => note,
        (done, None) => format!("{note} {} files", output::count(done)),
        (done, Some(total)) => {
            format!(
                "{note} {}/{} files",
                output::count(done),
                output::count(total)
            )
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_parse() {
        for template in [BAR, SPINNER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn a_message_counts_files_and_escapes_names() {
        let mut progress = Progress {
            note: "in\u{1b}dexing".into(),
            ..Progress::default()
        };
        assert_eq!(message(&progress), "in\\x1bdexing");
        progress.files_done = 1204;
        assert_eq!(message(&progress), "in\\x1bdexing 1,204 files");
        progress.files_total = Some(2000);
        assert_eq!(message(&progress), "in\\x1bdexing 1,204/2,000 files");
    }
}
