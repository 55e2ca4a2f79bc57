//! `-d`: a daemon in the background. The program starts itself again as `ccbt daemon`, in a session of its own, and waits
//! until that answers on the socket.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::connect::POLL;
use super::options::{self, Context};
use crate::api::{ApiError, Client, ErrorKind, escape};
use crate::config::{LOG_FILE, StateDir};

/// Recovery of a big state after a crash may take this long.
const START_MAX: Duration = Duration::from_secs(120);
/// Of the log: what the daemon said before it ended.
const LAST_WORDS_BYTES_MAX: u64 = 16 << 10;

/// Starts a daemon for the state directory and connects to it.
pub(super) async fn start(context: &Context) -> Result<Client, ApiError> {
    // Made, checked and let go again, so that what is wrong with it is said here and now.
    drop(StateDir::lock(&context.state)?);
    let log_path = context.state.join(LOG_FILE);
    let shown = escape(log_path.as_os_str().as_encoded_bytes());
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let mut log = options
        .open(&log_path)
        .map_err(|error| ApiError::io(format_args!("cannot write the log file {shown}"), &error))?;
    let before = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let mut child =
        spawn(context, &log).map_err(|error| ApiError::io("cannot start the daemon", &error))?;
    let until = Instant::now() + START_MAX;
    loop {
        if let Some(state) = StateDir::find(&context.state)?
            && let Some(client) = Client::connect(&state).await?
        {
            return Ok(client);
        }
        if let Some(error) = failure(&mut child, &mut log, before) {
            return Err(error.hint(format_args!("its log is {shown}")));
        }
        if Instant::now() >= until {
            return Err(
                ApiError::new(ErrorKind::Timeout, "the daemon is still starting").hint(
                    format_args!("see {shown}; `ccbt status` shows when it is ready"),
                ),
            );
        }
        sleep(POLL).await;
    }
}

fn spawn(context: &Context, log: &File) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("daemon")
        .arg("--detached")
        .arg("--state")
        .arg(&context.state);
    if let Ok(Some(file)) = options::config_file(&context.global) {
        command.arg("--config").arg(std::path::absolute(file)?);
    }
    command.args(context.network.args());
    command.args(std::iter::repeat_n(
        "-v",
        usize::from(context.global.verbose),
    ));
    command.args(context.global.quiet.then_some("-q"));
    command.env_remove("CCBT_LINK");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.try_clone()?)
        .spawn()
}

/// Why the daemon has ended, if it has.
fn failure(child: &mut Child, log: &mut File, before: u64) -> Option<ApiError> {
    let status = child.try_wait().ok()??;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let row = ErrorKind::TABLE.into_iter().find(|row| Some(row.1) == code);
    let kind = row.map_or(ErrorKind::Internal, |row| row.0);
    let words = last_words(log, before);
    let said = words
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("ccbt: "));
    let message = match said {
        Some(said) => format!("the daemon did not start: {said}"),
        None => format!("the daemon did not start ({status})"),
    };
    Some(ApiError::new(kind, message))
}

fn last_words(log: &mut File, before: u64) -> String {
    let end = log.seek(SeekFrom::End(0)).unwrap_or(before);
    let from = before.max(end.saturating_sub(LAST_WORDS_BYTES_MAX));
    let mut bytes = Vec::new();
    if log.seek(SeekFrom::Start(from)).is_ok() {
        // What can be read is enough.
        drop(log.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
