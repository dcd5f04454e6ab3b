//! A load on a CRI server, which `cargo xtask bench` runs against ours and against others: pods one at a time, then
//! several at once, their memory, then their end. Prints one JSON object; times are milliseconds.
//!
//! usage: cri_load SOCKET IMAGE PODS PROGRAM…    (programs whose processes' memory is counted)

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::*;
use tonic::transport::{Channel, Endpoint, Uri};

type Client = RuntimeServiceClient<Channel>;
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const AT_ONCE: usize = 10;

#[tokio::main]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, image, pods, programs @ ..] = words.as_slice() else {
        return Err("usage: cri_load SOCKET IMAGE PODS PROGRAM…".into());
    };
    let pods: usize = pods.parse()?;
    let channel = connect(socket.into()).await?;
    let client = RuntimeServiceClient::new(channel.clone());
    let image = ImageSpec {
        image: image.clone(),
        ..Default::default()
    };
    let status = ImageServiceClient::new(channel)
        .image_status(ImageStatusRequest {
            image: Some(image.clone()),
            verbose: false,
        })
        .await?;
    status.into_inner().image.ok_or("the image is not there")?;

    let load = Load {
        client,
        image,
        logs: std::env::temp_dir().join(format!("cri-load-{}", std::process::id())),
    };
    fs::create_dir_all(&load.logs)?;
    load.end(&load.start("warm-up").await?).await?;

    let idle = memory(programs);
    let (mut starts, mut running) = (Vec::new(), Vec::new());
    for number in 0..pods {
        let began = Instant::now();
        running.push(load.start(&format!("one-{number}")).await?);
        starts.push(began.elapsed());
    }
    let full = memory(programs);
    let mut ends = Vec::new();
    for sandbox in running {
        let began = Instant::now();
        load.end(&sandbox).await?;
        ends.push(began.elapsed());
    }
    let began = Instant::now();
    let mut at_once = tokio::task::JoinSet::new();
    for worker in 0..AT_ONCE {
        let load = load.clone();
        at_once.spawn(async move {
            let mut running = Vec::new();
            for number in 0..pods.div_ceil(AT_ONCE) {
                running.push(load.start(&format!("many-{worker}-{number}")).await?);
            }
            Outcome::Ok(running)
        });
    }
    let mut running = Vec::new();
    while let Some(started) = at_once.join_next().await {
        running.extend(started??);
    }
    let all_running = began.elapsed();
    for sandbox in running {
        load.end(&sandbox).await?;
    }
    let after = memory(programs);
    fs::remove_dir_all(&load.logs)?;
    starts.sort();
    ends.sort();
    let per_pod = (full as f64 - idle as f64) / pods as f64;
    println!(
        "{{\"start_p50\":{:.3},\"start_p99\":{:.3},\"end_p50\":{:.3},\"ten_at_once\":{:.3},\"idle_kib\":{idle},\"after_kib\":{after},\"kib_per_pod\":{per_pod:.1}}}",
        millis(at(&starts, 50)),
        millis(at(&starts, 99)),
        millis(at(&ends, 50)),
        millis(all_running),
    );
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn at(sorted: &[Duration], percent: usize) -> Duration {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

async fn connect(socket: PathBuf) -> Outcome<Channel> {
    let dial = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(socket).await?,
            ))
        }
    });
    Ok(Endpoint::from_static("http://localhost")
        .connect_with_connector(dial)
        .await?)
}

#[derive(Clone)]
struct Load {
    client: Client,
    image: ImageSpec,
    logs: PathBuf,
}

impl Load {
    /// RunPodSandbox, CreateContainer, StartContainer.
    async fn start(&self, name: &str) -> Outcome<String> {
        let mut client = self.client.clone();
        let folder = self.logs.join(name);
        fs::create_dir_all(&folder)?;
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "bench".into(),
            attempt: 0,
        };
        let config = PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: folder.display().to_string(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let sandbox = client
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(self.image.clone()),
            log_path: "main.log".into(),
            linux: Some(LinuxContainerConfig::default()),
            envs: Vec::new(),
            labels: HashMap::new(),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container_id = client
            .create_container(request)
            .await?
            .into_inner()
            .container_id;
        client
            .start_container(StartContainerRequest { container_id })
            .await?;
        Ok(sandbox)
    }

    /// StopPodSandbox, RemovePodSandbox.
    async fn end(&self, sandbox: &str) -> Outcome<()> {
        let mut client = self.client.clone();
        client
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: sandbox.into(),
            })
            .await?;
        client
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: sandbox.into(),
            })
            .await?;
        Ok(())
    }
}

/// The proportional set size, in KiB, of all processes of these programs.
fn memory(programs: &[String]) -> u64 {
    let mut total = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if programs.contains(&name) {
            let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let pss = rollup.lines().find_map(|line| {
                line.strip_prefix("Pss:")?
                    .split_whitespace()
                    .next()?
                    .parse::<u64>()
                    .ok()
            });
            total += pss.unwrap_or(0);
        }
    }
    total
}
