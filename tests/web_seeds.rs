//! Downloads from web seeds: real servers, and ones that misbehave in the ways that servers do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::Place;
use support::clients::*;
use support::web::{Manner, Program, WebServer};

/// A torrent of the folder that names these servers.
fn torrent_with(place: &Place, top: &Path, flag: &str, urls: &[&str]) -> PathBuf {
    let file = place.path("web.torrent");
    let seeds: Vec<String> = urls.iter().map(|url| format!("--web-seed={url}")).collect();
    let args = ["create", text(top), "-o", text(&file), "--force", flag];
    let args = [&args[..], &["--piece-size", "256KiB"]].concat();
    let seeds = seeds.iter().map(String::as_str);
    let run = place.run(&args.into_iter().chain(seeds).collect::<Vec<_>>());
    assert_eq!(run.code, 0, "{}", run.stderr);
    file
}

/// A daemon that downloads, and is asked how it goes.
struct Download<'a> {
    place: &'a Place,
    ccbt: Ccbt,
    hash: String,
}

impl<'a> Download<'a> {
    fn start(place: &'a Place, source: &str, more: &[&str], env: &[(&str, &str)]) -> Self {
        let ccbt = Ccbt::daemon(place, "s", free_port(), env);
        let mut download = Self {
            place,
            ccbt,
            hash: String::new(),
        };
        let out = place.path("out");
        let args = ["download", source, "-d", "-o", text(&out)];
        let begun = download.try_run(&[&args[..], more].concat());
        let begun = begun.unwrap_or_else(|| panic!("{}", download.ccbt.log()));
        download.hash = begun["torrent"]["hash"].as_str().unwrap().to_owned();
        download
    }

    fn try_run(&self, args: &[&str]) -> Option<serde_json::Value> {
        let state = self.place.path("s");
        let run = self
            .place
            .run(&[&["--state", text(&state), "--json"], args].concat());
        (run.code == 0).then(|| run.json())
    }

    fn show(&self, what: &str) -> serde_json::Value {
        self.try_run(&["torrent", &self.hash, what]).unwrap()
    }

    fn until(&self, what: &str, mut ready: impl FnMut(&serde_json::Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let all = self.show("web-seeds");
            if ready(&all) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {all}\n{}", self.ccbt.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn finish(&self, top: &Path) {
        self.until("it is not here", |all| all["torrent"]["state"] == "seeding");
        same(top, &self.place.path("out/top"));
    }
}

#[test]
fn whole_content_comes_from_a_real_server() {
    for flag in ["--v1", "--hybrid", "--v2"] {
        let place = Place::new();
        let top = content(&place, 24);
        fs::write(top.join("sub/\u{e4} #%?.bin"), random_bytes(500_000)).unwrap();
        let server = Program::lighttpd(&place.path("src"), place.dir.path());
        let file = torrent_with(&place, &top, flag, &[&server.url()]);
        let out = place.path("out");
        let args = ["download", text(&file), "-o", text(&out)];
        Ccbt::start(&place, "s", 0, &args).finish();
        same(&top, &out.join("top"));
    }
}

#[test]
fn a_single_file_and_its_magnet_link() {
    let place = Place::new();
    let source = place.path("src/one file.iso");
    fs::create_dir_all(place.path("src")).unwrap();
    fs::write(&source, random_bytes(9_000_001)).unwrap();
    let server = Program::lighttpd(&place.path("src"), place.dir.path());
    // As a folder with the file in it, and as the file itself.
    for (n, url) in [server.url(), server.url() + "one%20file.iso"]
        .iter()
        .enumerate()
    {
        let file = torrent_with(&place, &source, "--v1", &[url]);
        let out = place.path(&format!("out{n}"));
        let args = ["download", text(&file), "-o", text(&out)];
        Ccbt::start(&place, &format!("s{n}"), 0, &args).finish();
        assert_eq!(
            fs::read(out.join("one file.iso")).unwrap(),
            fs::read(&source).unwrap()
        );
    }
    // Peers tell what the torrent is; the one here gives nothing that was not there before it came.
    let file = torrent_with(&place, &source, "--v1", &[&server.url()]);
    let link = magnet(&place, &file);
    assert!(link.contains("ws="), "{link}");
    let (_seeder, port) = Other::seed(&file, &place.path("src"), 20_000);
    let out = place.path("out-magnet");
    let peer = format!("--peer=127.0.0.1:{port}");
    let args = ["download", &link, "-o", text(&out), &peer];
    Ccbt::start(&place, "s-magnet", 0, &args).finish();
    assert_eq!(
        fs::read(out.join("one file.iso")).unwrap(),
        fs::read(&source).unwrap()
    );
}

#[test]
fn servers_that_are_of_no_use_are_off_and_the_user_hears_why() {
    let place = Place::new();
    let top = content(&place, 8);
    let src = place.path("src");
    let python = Program::python(&src);
    let cases = [
        (Manner::Page, "page (text/html)"),
        (Manner::Circles, "redirects in circles"),
        (Manner::Endless, "ranges"),
        (Manner::Wrong, "wrong bytes"),
        (Manner::Login, "401"),
        (Manner::Inwards, "127.0.0.1"),
    ];
    let servers = cases.map(|(manner, _)| WebServer::start(&src, manner));
    let mut urls: Vec<String> = servers.iter().map(WebServer::url).collect();
    // The one that leads elsewhere on this machine is another one by its name.
    urls[5] = urls[5].replace("127.0.0.1", "localhost");
    urls.push(python.url());
    urls.push("ftp://127.0.0.1/".to_owned());
    let listed: Vec<&str> = urls.iter().map(String::as_str).collect();
    let file = torrent_with(&place, &top, "--v1", &listed);
    let download = Download::start(&place, text(&file), &[], &[]);
    let mut last = serde_json::Value::Null;
    download.until("all are off", |all| {
        last = all["web_seeds"].clone();
        last.as_array()
            .unwrap()
            .iter()
            .all(|seed| seed["off"] == true)
    });
    let why = |n: usize| last[n]["trouble"].as_str().unwrap().to_owned();
    for (n, (manner, words)) in cases.iter().enumerate().take(5) {
        assert!(why(n).contains(words), "{manner:?}: {last}");
    }
    assert!(why(5).contains("only this machine can reach"), "{last}");
    assert!(why(6).contains("ranges"), "{last}");
    assert!(why(7).contains("http"), "{last}");
    // No more of the endless body was taken than was on its way.
    assert!(servers[2].sent() < 64 << 20, "{} bytes", servers[2].sent());
    download.until("the note", |all| {
        let note = all["torrent"]["note"].as_str().unwrap();
        note.contains("no peers; web seed")
    });
    // Everything of no use is of no harm: a peer has it all.
    let (_seeder, port) = Other::seed(&file, &src, 0);
    let peer = format!("--peer=127.0.0.1:{port}");
    let out = place.path("out");
    download
        .try_run(&["download", text(&file), "-d", "-o", text(&out), &peer])
        .unwrap();
    download.finish(&top);
}

#[test]
fn servers_that_fail_at_times_are_asked_again() {
    for manner in [Manner::BusyAtFirst, Manner::Breaks] {
        let place = Place::new();
        let top = content(&place, 2);
        let server = WebServer::start(&place.path("src"), manner);
        let file = torrent_with(&place, &top, "--v1", &[&server.url()]);
        Download::start(&place, text(&file), &[], &[]).finish(&top);
    }
}

#[test]
fn what_one_server_lacks_comes_from_another_and_one_that_hangs_holds_nobody_up() {
    let place = Place::new();
    let top = content(&place, 4);
    let src = place.path("src");
    let servers = [Manner::Lacks, Manner::Hangs].map(|manner| WebServer::start(&src, manner));
    let urls = [servers[0].url(), servers[1].url()];
    let listed: Vec<&str> = urls.iter().map(String::as_str).collect();
    let file = torrent_with(&place, &top, "--hybrid", &listed);
    let download = Download::start(&place, text(&file), &[], &[]);
    // All but the pieces of one file.
    download.until("the rest", |all| {
        let torrent = &all["torrent"];
        let (total, done) = (&torrent["content"]["bytes"], &torrent["bytes_done"]);
        total.as_u64().unwrap() - done.as_u64().unwrap() == 300_001
    });
    let seeds = download.show("web-seeds")["web_seeds"].clone();
    assert_eq!(seeds[0]["active"], true, "{seeds}");
    let (_seeder, port) = Other::seed(&file, &src, 0);
    let (out, peer) = (place.path("out"), format!("--peer=127.0.0.1:{port}"));
    download
        .try_run(&["download", text(&file), "-d", "-o", text(&out), &peer])
        .unwrap();
    download.finish(&top);
}

#[test]
fn a_login_is_used_and_not_shown() {
    let place = Place::new();
    let top = content(&place, 1);
    let server = WebServer::start(&place.path("src"), Manner::Login);
    let url = server.url().replace("//", "//me:secret@");
    let file = torrent_with(&place, &top, "--v2", &[&url]);
    let download = Download::start(&place, text(&file), &[], &[]);
    download.finish(&top);
    let seeds = download.show("web-seeds").to_string();
    assert!(
        seeds.contains("127.0.0.1") && !seeds.contains("secret"),
        "{seeds}"
    );
    assert!(!download.ccbt.log().contains("secret"));
}

#[test]
fn limits_filters_and_the_setting_hold_for_web_seeds() {
    let place = Place::new();
    let top = content(&place, 8);
    let server = WebServer::start(&place.path("src"), Manner::Good);
    let file = torrent_with(&place, &top, "--v1", &[&server.url()]);
    let limit = ["--limit-down", "1MiB"];
    let begun = Instant::now();
    let download = Download::start(&place, text(&file), &limit, &[]);
    download.until("a part", |all| {
        all["torrent"]["bytes_down"].as_u64().unwrap() > 3 << 20
    });
    let (bytes, time) = (server.sent(), begun.elapsed());
    // What sockets and buffers hold is on its way as well.
    let most = (time.as_secs_f64() + 1.0) * (1 << 20) as f64 + (12 << 20) as f64;
    assert!((bytes as f64) < most, "{bytes} in {time:?}");
    assert!(time >= Duration::from_millis(900), "{time:?}");
    drop(download);
    fs::remove_dir_all(place.path("s")).unwrap();
    fs::remove_dir_all(place.path("out")).unwrap();
    let list = place.path("filter");
    fs::write(&list, "127.0.0.0/8\n").unwrap();
    let filter = [("CCBT_NETWORK_IP_FILTER", text(&list))];
    let download = Download::start(&place, text(&file), &[], &filter);
    download.until("it is blocked", |all| {
        let why = all["web_seeds"][0]["trouble"].as_str().unwrap_or_default();
        why.contains("IP filter")
    });
    drop(download);
    fs::remove_dir_all(place.path("s")).unwrap();
    let before = server.requests().len();
    let off = [("CCBT_TORRENT_WEB_SEEDS", "false")];
    let download = Download::start(&place, text(&file), &[], &off);
    download.until("there are none", |all| {
        all["web_seeds"].as_array().unwrap().is_empty()
    });
    assert_eq!(server.requests().len(), before);
}
