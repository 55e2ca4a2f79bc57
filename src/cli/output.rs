//! What commands print: results on stdout, everything else on stderr, nothing a terminal could act on.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::api::types::Amount;
use crate::api::{ApiError, ErrorKind};

/// Where results go and in which form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints the result: `value` as one JSON object, or the lines that `text` makes.
    pub(super) fn result<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), ApiError> {
        if !self.json {
            return print(&text(value));
        }
        let json = serde_json::to_string(value).map_err(|error| {
            ApiError::new(ErrorKind::Internal, format_args!("no JSON: {error}"))
        })?;
        print(&format!("{json}\n"))
    }

    /// One sentence for the person who watches.
    pub(super) fn note(self, text: &str) {
        // A closed stderr is the wish of who closed it.
        drop(writeln!(io::stderr(), "{}", harmless(text)));
    }

    pub(super) fn error(self, error: &ApiError) {
        if self.json {
            #[derive(Serialize)]
            struct Wrapped<'a> {
                error: &'a ApiError,
            }
            // If stdout is gone there is still stderr.
            drop(self.result(&Wrapped { error }, |_| String::new()));
        }
        self.note(&format!("ccbt: {}", error.message));
        if let Some(hint) = &error.hint {
            self.note(&format!("hint: {hint}"));
        }
    }
}

/// Writes to stdout and flushes. A reader that has seen enough (`| head`) is not an error.
pub(super) fn print(text: &str) -> Result<(), ApiError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(ApiError::io("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Messages may have lines (a TOML error shows the place); nothing else in them moves the cursor.
fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// `1,204 files, 3.1 GiB`
pub(super) fn amount(amount: Amount) -> String {
    let noun = if amount.files == 1 { "file" } else { "files" };
    format!("{} {noun}, {}", count(amount.files), bytes(amount.bytes))
}

/// What would be gone with this device, as a sentence; none if there is nothing.
pub(super) fn only_here(left: Amount) -> Option<String> {
    if left.files == 0 {
        return None;
    }
    let (verb, they) = match left.files {
        1 => ("exists", "it is"),
        _ => ("exist", "they are"),
    };
    Some(format!(
        "{} {verb} only here: {they} kept, and handed on when the daemon runs again",
        amount(left)
    ))
}

/// `1,204`
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `3.1 GiB`
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // What would round to 1024.0 is shown in the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&"EiB"))
}

/// `5 s`, `3 min`, `2 h`, `4 d`
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Columns, two spaces apart, without spaces at the end of a line.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 7, 999, 1204, 1_000_000].map(count),
            ["0", "7", "999", "1,204", "1,000,000"]
        );
        assert_eq!(
            [0, 1023, 1024, 1_048_575, 3_328_599_654, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "3.1 GiB", "16.0 EiB"]
        );
        assert_eq!(
            [0, 119, 120, 7200, 172_800].map(age),
            ["0 s", "119 s", "2 min", "2 h", "2 d"]
        );
        assert_eq!(amount(Amount { files: 1, bytes: 5 }), "1 file, 5 B");
    }

    #[test]
    fn what_is_only_here_is_a_sentence() {
        let said = |files| only_here(Amount { files, bytes: 5 });
        assert_eq!(said(0), None);
        assert!(
            said(1)
                .unwrap()
                .starts_with("1 file, 5 B exists only here: it is kept")
        );
        assert!(
            said(12)
                .unwrap()
                .starts_with("12 files, 5 B exist only here: they are kept")
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".into(), "bb".into()],
            vec!["ccc".into(), "d".into()],
        ];
        assert_eq!(table(&rows), "a    bb\nccc  d\n");
    }

    #[test]
    fn messages_cannot_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[2Jb\nc\r"), "a\u{fffd}[2Jb\nc\u{fffd}");
    }
}
