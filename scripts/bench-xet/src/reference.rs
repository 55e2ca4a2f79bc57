//! The same work done by xet-data, as its own client does it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xet_data::deduplication::Chunker;
use xet_data::deduplication::constants::TARGET_CHUNK_SIZE;
use xet_data::processing::configurations::TranslatorConfig;
use xet_data::processing::data_client::clean_file;
use xet_data::processing::{FileUploadSession, Sha256Policy};
use xet_runtime::core::XetContext;

use crate::{Clock, Fields, Result};

/// What its client reads at once.
const BLOCK: usize = 8 << 20;

pub fn chunk_hash(data: &[u8]) -> u64 {
    let mut chunker = Chunker::new(*TARGET_CHUNK_SIZE);
    let mut sum = 0u64;
    for block in data.chunks(BLOCK) {
        for chunk in chunker.next_block(block, false) {
            sum = sum.wrapping_add(chunk.hash[0]);
        }
    }
    chunker
        .finish()
        .map_or(sum, |chunk| sum.wrapping_add(chunk.hash[0]))
}

/// Ingests a file into a store in `dir` (`ref`) or in memory (`ref-memory`), after `held` was ingested unmeasured.
pub fn ingest(side: &str, held: Option<&Path>, file: &Path, dir: &Path) -> Result<Fields> {
    let ctx = XetContext::default()?;
    let config = match side {
        "ref-memory" => TranslatorConfig::memory_config(&ctx, dir)?,
        _ => TranslatorConfig::local_config(&ctx, dir)?,
    };
    let config = Arc::new(config);
    let upload = |file: PathBuf| {
        let config = Arc::clone(&config);
        ctx.runtime.bridge_sync(async move {
            let session = FileUploadSession::new(config).await?;
            clean_file(Arc::clone(&session), file, Sha256Policy::Skip).await?;
            session.finalize().await
        })
    };
    if let Some(held) = held {
        upload(held.to_path_buf())??;
    }
    let clock = Clock::start();
    let metrics = upload(file.to_path_buf())??;
    let fields = clock.stop(std::fs::metadata(file)?.len());
    Ok(fields.with("new_mib", metrics.new_bytes as f64 / f64::from(1 << 20)))
}
