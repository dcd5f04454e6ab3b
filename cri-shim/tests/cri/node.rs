//! A server in a directory of its own, the requests that tests make, and the leak check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use cri_api::images::ImportRequest;
use cri_api::images::images_client::ImagesClient;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::*;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha2::Digest;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const IMAGE: &str = "example.com/test/busybox:1";

pub struct Node {
    pub dir: tempfile::TempDir,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub imports: ImagesClient<Channel>,
    server: Option<Child>,
}

impl Node {
    /// A server with a network and one image.
    pub async fn start() -> Node {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests run as root"
        );
        let dir = tempfile::Builder::new().prefix("cri").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("cni")).unwrap();
        std::fs::write(
            dir.path().join("cni/10-test.conflist"),
            conflist(dir.path()),
        )
        .unwrap();
        let server = spawn(dir.path());
        let channel = connect(dir.path()).await;
        let mut node = Node {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel.clone()),
            imports: ImagesClient::new(channel),
            dir,
            server: Some(server),
        };
        node.import(busybox_image(), "").await.unwrap();
        node
    }

    /// Imports an archive in pieces, as a client does.
    pub async fn import(
        &mut self,
        archive: Vec<u8>,
        name: &str,
    ) -> Result<Vec<String>, tonic::Status> {
        let name = name.to_owned();
        let pieces: Vec<ImportRequest> = archive
            .chunks(1 << 20)
            .map(|piece| ImportRequest {
                name: name.clone(),
                data: piece.to_vec(),
            })
            .collect();
        let imported = self
            .imports
            .import(tokio_stream::iter(pieces))
            .await?
            .into_inner();
        Ok(imported.images.into_iter().map(|image| image.id).collect())
    }

    /// `kill -9`, then another one.
    pub async fn kill_and_restart(&mut self) {
        self.kill();
        self.restart().await;
    }

    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub async fn restart(&mut self) {
        self.server = Some(spawn(self.dir.path()));
        let channel = connect(self.dir.path()).await;
        self.runtime = RuntimeServiceClient::new(channel.clone());
        self.images = ImageServiceClient::new(channel.clone());
        self.imports = ImagesClient::new(channel);
    }

    pub fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: self
                .dir
                .path()
                .join("logs")
                .join(name)
                .display()
                .to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                ..Default::default()
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod-{name}", self.cgroup_root()),
                resources: Some(LinuxContainerResources {
                    memory_limit_in_bytes: 256 << 20,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn run_sandbox(
        &mut self,
        config: &PodSandboxConfig,
    ) -> Result<String, tonic::Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        Ok(self
            .runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn create(
        &mut self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> Result<String, tonic::Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        Ok(self
            .runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start_container(&mut self, id: &str) -> Result<(), tonic::Status> {
        self.runtime
            .start_container(StartContainerRequest {
                container_id: id.into(),
            })
            .await
            .map(drop)
    }

    /// Creates and starts a container that runs a shell script.
    pub async fn run(
        &mut self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        name: &str,
        script: &str,
    ) -> String {
        let id = self
            .create(sandbox, sandbox_config, script_config(name, script))
            .await
            .unwrap();
        self.start_container(&id).await.unwrap();
        id
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.runtime
            .container_status(request)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    pub async fn sandbox_status(&mut self, id: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        self.runtime
            .pod_sandbox_status(request)
            .await
            .unwrap()
            .into_inner()
            .status
            .unwrap()
    }

    pub async fn pid(&mut self, id: &str) -> i32 {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        };
        let info = self
            .runtime
            .container_status(request)
            .await
            .unwrap()
            .into_inner()
            .info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        i32::try_from(info["pid"].as_i64().unwrap()).unwrap()
    }

    pub async fn wait_for_exit(&mut self, id: &str) -> ContainerStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{id} has not ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn exec(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, tonic::Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout,
        };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    pub async fn exec_text(&mut self, id: &str, command: &[&str]) -> String {
        let output = self.exec(id, command, 10).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(output.exit_code, 0, "{command:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub async fn stop_container(&mut self, id: &str, timeout: i64) {
        let request = StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        self.runtime.stop_container(request).await.unwrap();
    }

    pub async fn remove_container(&mut self, id: &str) {
        self.runtime
            .remove_container(RemoveContainerRequest {
                container_id: id.into(),
            })
            .await
            .unwrap();
    }

    pub async fn remove_sandbox(&mut self, id: &str) {
        self.runtime
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: id.into(),
            })
            .await
            .unwrap();
        self.runtime
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: id.into(),
            })
            .await
            .unwrap();
    }

    pub fn cgroup_root(&self) -> String {
        cgroup_root(self.dir.path())
    }

    /// All that exists on account of this node's pods: network pins and other mounts, cgroups, links, leases, files.
    /// What the node itself needs is not among it.
    pub fn remains(&self) -> BTreeMap<&'static str, Vec<String>> {
        let dir = self.dir.path();
        let names = |path: PathBuf| -> Vec<String> {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            let mut names: Vec<String> = entries
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        let here = dir.display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = [
            format!("{here}/host-netns"),
            format!("{here}/state/pins"),
            format!("{here}/state/pins/mnt"),
        ];
        let mounts = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        let mounts = mounts
            .filter(|point| point.starts_with(&here) && !own.contains(point))
            .collect();
        let cgroups = std::fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|entry| entry.path());
        let root = self.cgroup_root();
        let cgroups = cgroups
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|path| path.join(&root[1..]));
        let cgroups = cgroups
            .filter(|path| path.exists())
            .map(|path| path.display().to_string())
            .collect();
        let leases = names(dir.join("leases/test"))
            .into_iter()
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok());
        let links = in_network(dir, || names(PathBuf::from("/sys/class/net")));
        BTreeMap::from([
            ("netns", names(dir.join("netns"))),
            ("mounts", mounts),
            ("cgroups", cgroups),
            ("leases", leases.collect()),
            (
                "veths",
                links
                    .into_iter()
                    .filter(|name| name.starts_with("veth"))
                    .collect(),
            ),
            ("containers", names(dir.join("root/containers"))),
            ("sandboxes", names(dir.join("state/sandboxes"))),
            (
                "keeper's",
                names(dir.join("state/keeper/containers"))
                    .into_iter()
                    .filter(|name| !name.starts_with('.'))
                    .collect(),
            ),
        ])
    }

    pub fn assert_nothing_remains(&self) {
        let left: BTreeMap<_, _> = self
            .remains()
            .into_iter()
            .filter(|(_, what)| !what.is_empty())
            .collect();
        assert!(left.is_empty(), "{left:#?}");
    }

    /// Ends the server with SIGTERM; with no pod left everything of its is gone afterwards.
    pub fn shut_down(mut self) {
        self.assert_nothing_remains();
        let mut server = self.server.take().unwrap();
        let pid = i32::try_from(server.id()).unwrap();
        linux::signal::kill(pid, 15).unwrap();
        assert!(server.wait().unwrap().success());
        let deadline = std::time::Instant::now() + PATIENCE;
        while !processes_of(self.dir.path()).is_empty() {
            assert!(
                std::time::Instant::now() < deadline,
                "{:?}",
                processes_of(self.dir.path())
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().display().to_string();
        let own = format!("{here}/host-netns");
        let left: Vec<&str> = table
            .lines()
            .filter(|line| line.contains(&here) && !line.contains(&own))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Node {
    /// Whatever state a failed test leaves, nothing of it outlives the test.
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let hierarchies = std::sync::Arc::new(linux::cgroup::Hierarchies::discover().unwrap());
        if let Ok(cgroup) = linux::cgroup::Cgroup::at(hierarchies, &self.cgroup_root()) {
            let _ = cgroup.kill();
            let _ = cgroup.wait_empty(Duration::from_secs(5));
            let _ = cgroup.delete();
        }
        for pid in processes_of(self.dir.path()) {
            if let Ok(pidfd) = linux::pidfd::open(pid) {
                let _ = linux::pidfd::kill(pidfd);
            }
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let here = self.dir.path().display().to_string();
        let mut points: Vec<&str> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .collect();
        points.retain(|point| point.starts_with(&here));
        for point in points.iter().rev() {
            let _ = linux::mount::detach(Path::new(point));
        }
    }
}

fn cgroup_root(dir: &Path) -> String {
    format!(
        "/orlop-test-{}",
        dir.file_name()
            .unwrap()
            .to_string_lossy()
            .trim_start_matches('.')
    )
}

fn spawn(dir: &Path) -> Child {
    let test = std::env::current_exe().unwrap();
    let program = test
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/cri_server");
    assert!(
        program.exists(),
        "build it: cargo build -p cri-shim --example cri_server"
    );
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("server.log"))
        .unwrap();
    Command::new(program)
        .arg("cri")
        .arg(dir)
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn connect(dir: &Path) -> Channel {
    let socket = dir.join("cri.sock");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let path = socket.clone();
        // The address is never looked up: the connector knows where to go.
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move {
                std::io::Result::Ok(TokioIo::new(tokio::net::UnixStream::connect(path).await?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            let mut client = RuntimeServiceClient::new(channel.clone());
            if client.version(VersionRequest::default()).await.is_ok() {
                return channel;
            }
        }
        let log = std::fs::read_to_string(dir.join("server.log")).unwrap_or_default();
        assert!(
            tokio::time::Instant::now() < deadline,
            "the server does not answer:\n{log}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs `work` in the node's host network, on a thread that ends afterwards. sysfs shows the network of whoever
/// mounted it, so a new one is mounted there.
pub fn in_network<T: Send>(dir: &Path, work: impl FnOnce() -> T + Send) -> T {
    use linux::namespace::{self, NamespaceKind};
    let pin = dir.join("host-netns");
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            namespace::join(std::fs::File::open(pin).unwrap(), &[NamespaceKind::Network]).unwrap();
            namespace::unshare(&[NamespaceKind::Mount]).unwrap();
            linux::mount::set_propagation(Path::new("/"), linux::mount::Propagation::Private, true)
                .unwrap();
            let sysfs = linux::mount::new_file_system("sysfs", Some("sysfs"), &[], 0).unwrap();
            linux::mount::attach_at(sysfs, Path::new("/sys")).unwrap();
            work()
        });
        work.join().unwrap()
    })
}

/// Keepers, scribes and servers of a directory.
fn processes_of(dir: &Path) -> Vec<i32> {
    let here = dir.display().to_string();
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&here)
    })
    .collect()
}

fn conflist(dir: &Path) -> String {
    json!({"cniVersion": "1.0.0", "name": "test", "plugins": [
        {"type": "bridge", "bridge": "test0", "isGateway": true, "ipMasq": false, "ipam": {
            "type": "host-local", "dataDir": dir.join("leases"),
            "ranges": [[{"subnet": "10.244.7.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]})
    .to_string()
}

pub fn script_config(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 512,
                ..Default::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container as i32,
                    ..Default::default()
                }),
                seccomp: Some(SecurityProfile::default()),
                masked_paths: vec!["/proc/kcore".into()],
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// An OCI archive of one image: Debian's busybox, with a user and an environment of its own.
pub fn busybox_image() -> Vec<u8> {
    image(
        IMAGE,
        &[busybox_layer()],
        json!({"Env": ["FROM_IMAGE=yes"], "Entrypoint": ["/bin/sh"]}),
    )
}

/// Its layer: a shell and accounts.
pub fn busybox_layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, path, content).unwrap();
    };
    for folder in ["bin", "etc", "tmp", "root"] {
        add(
            folder,
            tar::EntryType::Directory,
            if folder == "tmp" { 0o1777 } else { 0o755 },
            b"",
        );
    }
    add(
        "bin/sh",
        tar::EntryType::Regular,
        0o755,
        &std::fs::read("/bin/busybox").unwrap(),
    );
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n",
    );
    add(
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nlogs:x:50:web\n",
    );
    layer.into_inner().unwrap()
}

/// An OCI archive of one image.
pub fn image(name: &str, layers: &[Vec<u8>], config: serde_json::Value) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let hex = hex::encode(sha2::Sha256::digest(&bytes));
        let descriptor = json!({"digest": format!("sha256:{hex}"), "size": bytes.len()});
        files.push((format!("blobs/sha256/{hex}"), bytes));
        descriptor
    };
    let layers: Vec<_> = layers.iter().map(|layer| blob(layer.clone())).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = blob(serde_json::to_vec(&config).unwrap());
    let mut manifest = blob(
        serde_json::to_vec(&json!({"schemaVersion": 2, "config": config, "layers": layers}))
            .unwrap(),
    );
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    files.push((
        "index.json".into(),
        serde_json::to_vec(&json!({"manifests": [manifest]})).unwrap(),
    ));
    crate::archive::archive(files)
}
