//! The foreground loop around the fake daemon, with signals sent by hand.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::api::fake::FakeControl;
use crate::api::types::{ApiPath, MountRequest, MountSource, PinRequest, UnmountRequest};

struct Setup {
    _dir: TempDir,
    client: Client,
    control: Arc<FakeControl>,
    asks: mpsc::Sender<Ask>,
    process: JoinHandle<Result<(), ApiError>>,
}

fn item(dir: &str) -> WorkItem {
    WorkItem {
        kind: WorkKind::Mount,
        dir: ApiPath(dir.into()),
    }
}

async fn foreground() -> (TempDir, Arc<FakeControl>, mpsc::Sender<Ask>, Foreground) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::lock(dir.path()).unwrap();
    let control = Arc::new(FakeControl::default());
    let (asks, signals) = mpsc::channel(4);
    let serve = Foreground::serve(control.clone(), &state, None, Signals(signals));
    (dir, control, asks, serve.await.unwrap())
}

/// A foreground process that has mounted `/own`, unless it is a daemon.
async fn setup(is_daemon: bool) -> Setup {
    let (dir, control, asks, mut foreground) = foreground().await;
    let client = foreground.client.clone();
    let own = item("/own");
    if !is_daemon {
        foreground
            .call(&mount("/own"), &NoProgress)
            .await
            .unwrap()
            .unwrap();
    }
    let process = tokio::spawn(async move {
        let own = (!is_daemon).then_some(&own);
        foreground.run(Output { json: false }, own).await
    });
    Setup {
        _dir: dir,
        client,
        control,
        asks,
        process,
    }
}

fn mount(dir: &str) -> MountRequest {
    MountRequest {
        source: MountSource::Dir(ApiPath("/source".into())),
        dir: ApiPath(dir.into()),
        read_only: false,
        offline: false,
        persist: false,
        suid: false,
        dev: false,
        peers: Vec::new(),
    }
}

impl Setup {
    async fn mount(&self, dir: &str) {
        self.client.call(&mount(dir), &NoProgress).await.unwrap();
    }

    async fn unmount(&self, dir: &str) {
        let request = UnmountRequest {
            dir: ApiPath(dir.into()),
            force: false,
        };
        self.client.call(&request, &NoProgress).await.unwrap();
    }

    /// The process is still there after everything that is ready has run.
    async fn stays(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(100)).await;
        !self.process.is_finished() && !self.control.work().borrow().ended
    }

    async fn ends(self) {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.process).await;
        ended.expect("the process did not end").unwrap().unwrap();
        let work = self.control.work().borrow().clone();
        assert!(work.ended && work.items.is_empty(), "{work:?}");
    }
}

#[tokio::test]
async fn it_ends_when_its_own_mount_is_gone() {
    let setup = setup(false).await;
    assert!(setup.stays().await);
    setup.unmount("/own").await;
    setup.ends().await;
}

#[tokio::test]
async fn it_stays_for_what_others_added_and_ends_with_that() {
    let setup = setup(false).await;
    setup.mount("/other").await;
    setup.unmount("/own").await;
    assert!(setup.stays().await);
    setup.unmount("/other").await;
    setup.ends().await;
}

#[tokio::test]
async fn ctrl_c_ends_it_at_once_when_nobody_else_is_concerned() {
    let setup = setup(false).await;
    setup.asks.send(Ask::Interrupt).await.unwrap();
    setup.ends().await;
}

#[tokio::test]
async fn ctrl_c_asks_again_when_others_are() {
    let setup = setup(false).await;
    setup.mount("/other").await;
    setup.asks.send(Ask::Interrupt).await.unwrap();
    assert!(setup.stays().await);
    setup.asks.send(Ask::Interrupt).await.unwrap();
    setup.ends().await;
}

#[tokio::test]
async fn sigterm_never_asks() {
    let setup = setup(false).await;
    setup.mount("/other").await;
    setup.asks.send(Ask::Terminate).await.unwrap();
    setup.ends().await;
}

#[tokio::test]
async fn a_daemon_outlives_its_mounts_and_ends_by_a_call() {
    let setup = setup(true).await;
    setup.mount("/a").await;
    setup.unmount("/a").await;
    assert!(setup.stays().await);
    setup
        .client
        .call(&ShutdownRequest {}, &NoProgress)
        .await
        .unwrap();
    setup.ends().await;
}

#[tokio::test]
async fn a_signal_during_the_call_takes_the_daemon_down() {
    let (_dir, control, asks, mut foreground) = foreground().await;
    let request = PinRequest {
        path: ApiPath(Path::new("/a/60000").into()),
    };
    asks.send(Ask::Interrupt).await.unwrap();
    assert!(
        foreground
            .call(&request, &NoProgress)
            .await
            .unwrap()
            .is_none()
    );
    assert!(control.work().borrow().ended);
}

#[tokio::test]
async fn what_was_there_before_is_nobodys_reason_to_stay() {
    let (_dir, control, asks, foreground) = foreground().await;
    let (before, own) = (item("/before"), item("/own"));
    drop((control, foreground));
    let (work, mut receiver) = watch::channel(Work::default());
    work.send_modify(|work| work.items = vec![before.clone()]);
    let (_asks, signals) = mpsc::channel(1);
    drop(asks);
    let waiting = tokio::spawn(async move {
        let output = Output { json: false };
        wait(
            &mut receiver,
            &mut Signals(signals),
            Some(&own),
            &[before],
            output,
        )
        .await
    });
    work.send_modify(|work| work.items.push(item("/own")));
    tokio::time::sleep(Duration::from_millis(50)).await;
    work.send_modify(|work| {
        work.items
            .retain(|item| item.dir.as_path() != Path::new("/own"));
    });
    assert_eq!(waiting.await.unwrap(), End::Done);
}
