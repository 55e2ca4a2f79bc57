//! The command line's end of the API: one connection to the unix socket per call.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::control::ProgressReport;
use super::error::{ApiError, ErrorKind};
use super::listen;
use super::server::Line;
use super::types::Request;
use crate::config::StateDir;

/// A status of a hundred thousand folders; beyond this something other than our daemon is answering.
const LINE_BYTES_MAX: usize = 64 << 20;

/// The daemon of a state directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// `None` if no daemon answers there.
    pub async fn connect(state: &StateDir) -> Result<Option<Self>, ApiError> {
        let client = Self {
            socket: state.socket(),
        };
        match listen::connect_unix(&client.socket).await {
            Ok(_) => Ok(Some(client)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(client.unreachable(&error)),
            },
        }
    }

    /// Makes a call and waits for its answer, which may take as long as the work does.
    pub async fn call<R: Request>(
        &self,
        request: &R,
        progress: &dyn ProgressReport,
    ) -> Result<R::Response, ApiError> {
        let stream = listen::connect_unix(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let mut body = send(stream, request).await?;
        let mut buffer = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| lost())?.into_data() else {
                continue;
            };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                match serde_json::from_slice(&line).map_err(|_| unintelligible())? {
                    Line::Progress(report) => progress.report(report),
                    Line::Result(response) => return Ok(response),
                    Line::Error(error) => return Err(error),
                }
            }
            if buffer.len() > LINE_BYTES_MAX {
                return Err(unintelligible());
            }
        }
        Err(lost())
    }

    fn unreachable(&self, error: &io::Error) -> ApiError {
        let path = super::escape(self.socket.as_os_str().as_encoded_bytes());
        ApiError::io(format_args!("cannot reach the daemon at {path}"), error)
    }
}

async fn send<R: Request>(
    stream: UnixStream,
    request: &R,
) -> Result<hyper::body::Incoming, ApiError> {
    let body = serde_json::to_vec(request)
        .map_err(|error| ApiError::new(ErrorKind::Internal, format_args!("cannot ask: {error}")))?;
    let request = hyper::Request::post(format!("/v1/{}", R::NAME))
        .header(HOST, "localhost")
        .header(ACCEPT, "application/x-ndjson")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| ApiError::new(ErrorKind::Internal, format_args!("cannot ask: {error}")))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| lost())?;
    // Its end shows as the end of the body.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|_| lost())?;
    Ok(response.into_body())
}

fn lost() -> ApiError {
    ApiError::new(ErrorKind::Io, "the daemon went away before it answered")
        .hint("its log in the state directory says why; start it again with `ccbt daemon -d`")
}

fn unintelligible() -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        "the daemon's answer cannot be understood",
    )
    .hint("is it of another version? `ccbt daemon stop`, then start it again")
}
