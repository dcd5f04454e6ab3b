//! A store whose process is killed, or whose disk is full, at any of its system calls: it verifies afterwards, holds
//! nothing that nobody knows of, and the next pull ends well.
//!
//! The faults are the kernel's, put there by strace: the program has no code for them.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use cri_shim::image::{Credentials, Progress, Proxies, Puller, Reference, Store};

use crate::{image, store};

/// What changes something on disk.
const CALLS: [&str; 20] = [
    "openat",
    "mkdir",
    "mkdirat",
    "write",
    "pwrite64",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "ftruncate",
    "fchownat",
    "fchmod",
    "utimensat",
    "setxattr",
    "symlinkat",
    "linkat",
    "mknodat",
    "fdatasync",
    "fsync",
    "syncfs",
];
/// Those that need room; but for `write`, with which the test's process tells how it ends.
const GROWING: [&str; 8] = [
    "openat",
    "mkdir",
    "mkdirat",
    "pwrite64",
    "rename",
    "symlinkat",
    "mknodat",
    "syncfs",
];
const FOLDER: &str = "ORLOP_IMAGE_FAULTS";

/// Pulls, imports and removes; what fails is told, and the next is tried.
#[test]
#[ignore = "the process that the other tests put faults into"]
fn worker() {
    let Some(root) = std::env::var_os(FOLDER) else {
        return;
    };
    let root = Path::new(&root);
    let store = match try_store(&root.join("disk")) {
        Ok(store) => store,
        Err(error) => return println!("open: {error}"),
    };
    let tell = |what: &str, result: Result<(), cri_shim::image::Error>| {
        if let Err(error) = result {
            println!("{what}: {error}");
        }
    };
    tell("pull", pull(&store, root));
    tell("settle", store.settle());
    tell("remove", store.remove("registry.example/two:layers"));
    let imported = store.import(image().as_slice(), None);
    tell("import", imported.map(drop));
    tell("collect", store.collect());
    tell("pull", pull(&store, root));
}

fn try_store(root: &Path) -> Result<Arc<Store>, cri_shim::image::Error> {
    let journal = Arc::new(journal::Journal::open(root.join("journal"), 1)?);
    Store::open(root.join("images"), journal, Default::default()).map(Arc::new)
}

/// From the layout that the test put there, by a server in this process.
fn pull(store: &Arc<Store>, root: &Path) -> Result<(), cri_shim::image::Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let address = serve(root.join("layout")).await;
        let folder = root.join("certs.d/registry.example");
        if std::fs::create_dir_all(&folder).is_err()
            || std::fs::write(
                folder.join("hosts.toml"),
                format!("server = \"http://{address}\""),
            )
            .is_err()
        {
            return Ok(());
        }
        let puller = Puller::new(
            store.clone(),
            vec![root.join("certs.d")],
            Proxies::default(),
        );
        let name = Reference::parse("registry.example/two:layers").unwrap();
        let progress = Progress::default();
        let pulled = puller.pull(&name, Credentials::Anonymous, &progress);
        pulled.await.map(drop)
    })
}

/// Serves a layout's folder as a registry does.
async fn serve(layout: std::path::PathBuf) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let layout = layout.clone();
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
                        let wanted = request.uri().path().rsplit('/').next().unwrap_or_default();
                        let digest = match wanted.strip_prefix("sha256:") {
                            Some(hex) => hex.to_owned(),
                            None => std::fs::read_to_string(layout.join("tag")).unwrap_or_default(),
                        };
                        let content = std::fs::read(layout.join("blobs/sha256").join(digest));
                        let answer = match content {
                            Ok(content) => http::Response::new(http_body_util::Full::new(
                                bytes::Bytes::from(content),
                            )),
                            Err(_) => {
                                let mut missing =
                                    http::Response::new(http_body_util::Full::default());
                                *missing.status_mut() = http::StatusCode::NOT_FOUND;
                                missing
                            }
                        };
                        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
                    });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

/// A folder with the layout that is pulled from.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    tar::Archive::new(image().as_slice())
        .unpack(&layout)
        .unwrap();
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    std::fs::write(layout.join("tag"), digest.trim_start_matches("sha256:")).unwrap();
    std::fs::create_dir(dir.path().join("disk")).unwrap();
    dir
}

/// Runs the worker with a fault; whether there was one, and how it ended.
fn with_fault(root: &Path, call: &str, fault: &str, when: &str) -> (bool, ExitStatus) {
    let trace = root.join("trace");
    let output = std::fs::File::create(root.join("output")).unwrap();
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&trace)
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{fault}:when={when}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::worker", "--ignored", "--nocapture"])
        .env(FOLDER, root)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .status()
        .expect("strace is installed");
    let trace = std::fs::read_to_string(trace).unwrap();
    let hit = trace.contains("INJECTED") || trace.contains("+++ killed by SIGKILL");
    (hit, status)
}

/// What is on disk is what the records say; then everything works, and can be removed.
fn is_sound(root: &Path, what: &str) {
    let said = || std::fs::read_to_string(root.join("output")).unwrap_or_default();
    let store = store(&root.join("disk"));
    let verified = store.verify();
    assert!(
        verified.faults.is_empty(),
        "{what}: {:?}\n{}",
        verified.faults,
        said()
    );
    let names = |folder: &str| {
        let entries = std::fs::read_dir(root.join("disk/images").join(folder)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "empty");
        names.sort();
        names
    };
    assert_eq!(names("ingest"), Vec::<String>::new(), "{what}");
    assert_eq!(names("layers"), names("recipes"), "{what}");
    pull(&store, root).unwrap_or_else(|error| panic!("{what}: {error}"));
    let verified = store.verify();
    assert!(
        verified.faults.is_empty() && verified.images == 1,
        "{what}: {verified:?}"
    );
    assert_eq!(names("layers").len(), 2, "{what}");
    for image in store.list() {
        store.remove(image.id.as_str()).unwrap();
    }
    for folder in ["layers", "recipes", "blobs/sha256", "ingest"] {
        assert_eq!(names(folder), Vec::<String>::new(), "{what}: {folder}");
    }
}

/// As far apart as Fibonacci's numbers, until there is no such call any more.
fn at_each(call: &str, fault: &str, from_there_on: bool) {
    let (mut number, mut next) = (1, 2);
    loop {
        let dir = folder();
        let when = format!("{number}{}", if from_there_on { "+" } else { "" });
        let (hit, status) = with_fault(dir.path(), call, fault, &when);
        let what = format!("{fault} at {call} {when}");
        // A panic's code.
        assert_ne!(
            status.code(),
            Some(101),
            "{what}: {}",
            std::fs::read_to_string(dir.path().join("output")).unwrap()
        );
        is_sound(dir.path(), &what);
        if !hit {
            return;
        }
        (number, next) = (next, number + next);
    }
}

#[test]
fn killed_at_any_moment() {
    for call in CALLS {
        at_each(call, "signal=KILL", false);
    }
}

#[test]
fn a_full_disk_at_any_moment() {
    for call in GROWING {
        at_each(call, "error=ENOSPC", true);
    }
}

/// A disk that is really full, and then larger. The worker's part is in a mount namespace of its own.
#[test]
fn a_small_disk() {
    let status = Command::new("unshare")
        .arg("--mount")
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "faults::on_a_small_disk",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "the part in a mount namespace"]
fn on_a_small_disk() {
    if std::env::var_os(FOLDER).is_none() {
        return;
    }
    let dir = folder();
    let disk = dir.path().join("disk");
    for kib in (60..1000).step_by(30) {
        let mount = |options: &str| {
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "tmpfs"])
                .arg(&disk)
                .status();
            assert!(mounted.unwrap().success());
        };
        mount(&format!("size={kib}k"));
        let pulled = try_store(&disk).and_then(|store| {
            let pulled = pull(&store, dir.path());
            assert!(store.verify().faults.is_empty());
            pulled
        });
        if let Err(error) = pulled {
            let text = error.to_string();
            let full = ["No space left", "database or disk is full"];
            assert!(full.iter().any(|full| text.contains(full)), "{kib}: {text}");
        }
        mount("remount,size=8m");
        is_sound(dir.path(), &format!("{kib} KiB"));
        let unmounted = Command::new("umount").arg(&disk).status();
        assert!(unmounted.unwrap().success());
    }
}
