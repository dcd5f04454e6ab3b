//! The proof of the demo: every claim is tried, from outside, as a user would.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::v1 as cri;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{
    AttachParams, DeleteParams, DynamicObject, ListParams, LogParams, Patch, PatchParams,
};
use kube::core::{ApiResource, TypeMeta};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::objects::{self, NAME, NAMESPACE};
use super::reach;
use super::runtime::{connect, kill};
use super::wait::{PATIENCE, eventually, rolled_out, watch_until, watch_until_all};
use crate::up::console::Console;

/// A fair choice of three misses one of them in so many draws once in 10^17.
const DRAWS: usize = 100;

struct Demo<'a> {
    client: &'a Client,
    cri_socket: &'a Path,
    pods: Vec<Pod>,
    service: SocketAddr,
    node_port: SocketAddr,
}

/// Applies the demo's objects, as `kubectl apply --server-side` does.
pub async fn apply(client: &Client) -> anyhow::Result<()> {
    for object in objects::all() {
        let types: TypeMeta = serde_json::from_value(object.clone())?;
        let resource = ApiResource::from_gvk(&(&types).try_into()?);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
        let applied = api
            .patch(
                NAME,
                &PatchParams::apply("orlop-demo").force(),
                &Patch::Apply(&object),
            )
            .await;
        applied.with_context(|| format!("apply {} {NAME}", types.kind))?;
    }
    Ok(())
}

/// Waits for the demo to run and answer, then proves the rest, claim by claim. Fails with the first that doesn't
/// hold. Afterwards the demo is deleted.
pub async fn prove(
    client: &Client,
    cri_socket: &Path,
    console: &mut Console,
) -> anyhow::Result<()> {
    let pods = rolled_out(client, objects::REPLICAS).await?;
    console.stage(
        "pods running",
        &format!("{} of {}", pods.len(), objects::REPLICAS),
    );
    let (service, node_port) = addresses(client).await?;
    let mut demo = Demo {
        client,
        cri_socket,
        pods,
        service,
        node_port,
    };
    let first = demo.until_answering().await?;
    console.stage(
        "Service answering",
        &format!("http://{service} answered from {first}"),
    );
    console.heading("proof");
    macro_rules! claim {
        ($($claim:literal => $method:ident),* $(,)?) => {
            $(console.claim($claim, demo.$method().await)?;)*
        };
    }
    claim! {
        "each pod answers on an address of its own" => own_addresses,
        "pods reach each other, and themselves on localhost" => pod_to_pod,
        "the ConfigMap and the Secret are mounted" => mounts,
        "the Service spreads over all pods, from the node" => service_from_node,
        "the Service spreads over all pods, from a pod" => service_from_pod,
        "the NodePort answers on the node's address" => node_port_answers,
        "logs hold what the container printed" => logs,
        "exec runs a program and returns its status" => exec,
        "a killed container is restarted, and counted" => restart,
        "scaling to 5 and back to 3" => scale,
        "deleting it leaves nothing" => delete,
    }
    Ok(())
}

async fn addresses(client: &Client) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    let service = Api::<Service>::namespaced(client.clone(), NAMESPACE)
        .get(NAME)
        .await?;
    let spec = service.spec.context("the Service has no spec")?;
    let cluster_ip: IpAddr = spec
        .cluster_ip
        .context("the Service has no address")?
        .parse()?;
    let port = spec
        .ports
        .iter()
        .flatten()
        .next()
        .context("the Service has no port")?
        .clone();
    let node_port = u16::try_from(port.node_port.context("the Service has no NodePort")?)?;
    let nodes = Api::<Node>::all(client.clone())
        .list(&ListParams::default())
        .await?;
    let addresses = nodes.items.iter().flat_map(|node| {
        node.status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten())
    });
    let internal = addresses
        .filter(|address| address.type_ == "InternalIP")
        .find_map(|address| address.address.parse().ok());
    let node: IpAddr = internal.context("the node has no InternalIP")?;
    Ok((
        SocketAddr::new(cluster_ip, u16::try_from(port.port)?),
        SocketAddr::new(node, node_port),
    ))
}

impl Demo<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.pods.iter().map(ResourceExt::name_any).collect()
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    fn first(&self) -> anyhow::Result<&Pod> {
        self.pods.first().context("no pod is there")
    }

    fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let address = |pod: &Pod| {
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
            anyhow::Ok(SocketAddr::new(
                ip.with_context(|| format!("{} has no address", pod.name_any()))?
                    .parse()?,
                8080,
            ))
        };
        self.pods.iter().map(address).collect()
    }

    /// The rules follow the endpoints at once, but not before them: the first tries may come too early.
    async fn until_answering(&self) -> anyhow::Result<String> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match reach::get(self.service, "/").await {
                Ok(name) => return Ok(name),
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    async fn own_addresses(&mut self) -> anyhow::Result<String> {
        let addresses = self.addresses()?;
        let distinct: BTreeSet<_> = addresses.iter().collect();
        ensure!(
            distinct.len() == self.pods.len(),
            "addresses are shared: {addresses:?}"
        );
        for (pod, address) in self.pods.iter().zip(&addresses) {
            let answer = reach::get(*address, "/").await?;
            ensure!(
                answer == pod.name_any(),
                "{address} is {}'s but {answer} answers",
                pod.name_any()
            );
        }
        Ok(addresses
            .iter()
            .map(|address| address.ip().to_string())
            .collect::<Vec<_>>()
            .join(", "))
    }

    /// Runs the demo's program in a pod; its output, if it ended with 0.
    async fn run(&self, pod: &str, words: &[&str]) -> anyhow::Result<String> {
        let (output, status) = self.run_any(pod, words).await?;
        ensure!(
            status == 0,
            "{words:?} in {pod} ended with {status}: {output}"
        );
        Ok(output)
    }

    async fn run_any(&self, pod: &str, words: &[&str]) -> anyhow::Result<(String, i32)> {
        let command = std::iter::once("/demo").chain(words.iter().copied());
        let mut process = self
            .api()
            .exec(pod, command, &AttachParams::default().stderr(true))
            .await?;
        let status = process.take_status().context("exec has no status")?;
        let mut output = String::new();
        if let Some(mut stdout) = process.stdout() {
            stdout.read_to_string(&mut output).await?;
        }
        if let Some(mut stderr) = process.stderr() {
            stderr.read_to_string(&mut output).await?;
        }
        let status = status.await.context("exec ended without a status")?;
        process.join().await?;
        let causes = status
            .details
            .and_then(|details| details.causes)
            .unwrap_or_default();
        let code = causes
            .iter()
            .find(|cause| cause.reason.as_deref() == Some("ExitCode"))
            .and_then(|cause| cause.message.as_ref()?.parse().ok());
        match status.status.as_deref() {
            Some("Success") => Ok((output, 0)),
            _ => Ok((
                output,
                code.with_context(|| {
                    format!("exec failed: {}", status.message.unwrap_or_default())
                })?,
            )),
        }
    }

    async fn pod_to_pod(&mut self) -> anyhow::Result<String> {
        let names: Vec<_> = self.pods.iter().map(ResourceExt::name_any).collect();
        let addresses = self.addresses()?;
        for from in &names {
            for (to, address) in names.iter().zip(&addresses) {
                let answer = self
                    .run(from, &["get", &format!("http://{address}/")])
                    .await?;
                ensure!(
                    answer.trim() == to,
                    "from {from}, {address} answered as {answer:?}, not as {to}"
                );
            }
            let answer = self.run(from, &["get", "http://127.0.0.1:8080/"]).await?;
            ensure!(
                answer.trim() == from,
                "localhost in {from} answered as {answer:?}"
            );
        }
        Ok(format!("{} paths", names.len() * (names.len() + 1)))
    }

    async fn mounts(&mut self) -> anyhow::Result<String> {
        for address in self.addresses()? {
            ensure!(
                reach::get(address, "/config").await? == objects::GREETING,
                "{address} has another ConfigMap"
            );
            ensure!(
                reach::get(address, "/secret").await? == objects::PASSWORD,
                "{address} has another Secret"
            );
        }
        Ok("in every pod".to_owned())
    }

    async fn service_from_node(&mut self) -> anyhow::Result<String> {
        let mut seen = BTreeSet::new();
        for _ in 0..DRAWS {
            seen.insert(reach::get(self.service, "/").await?);
        }
        ensure!(seen == self.names(), "only {seen:?} answered");
        Ok(format!("{DRAWS} connections, {} pods", seen.len()))
    }

    async fn service_from_pod(&mut self) -> anyhow::Result<String> {
        let from = self.first()?.name_any();
        let output = self
            .run(
                &from,
                &[
                    "get",
                    &format!("http://{}/", self.service),
                    &DRAWS.to_string(),
                ],
            )
            .await?;
        let seen: BTreeSet<String> = output.lines().map(str::to_owned).collect();
        ensure!(seen == self.names(), "from {from}, only {seen:?} answered");
        Ok(format!("{DRAWS} connections, itself among them"))
    }

    async fn node_port_answers(&mut self) -> anyhow::Result<String> {
        let answer = reach::get(self.node_port, "/").await?;
        ensure!(
            self.names().contains(&answer),
            "{answer:?} is none of the pods"
        );
        Ok(self.node_port.to_string())
    }

    async fn logs(&mut self) -> anyhow::Result<String> {
        let pod = self.first()?.name_any();
        let text = self.api().logs(&pod, &LogParams::default()).await?;
        ensure!(
            text.starts_with("serving on port 8080\n"),
            "the log of {pod} starts otherwise: {text:?}"
        );
        ensure!(
            text.contains("GET / 200 OK\n"),
            "the log of {pod} lacks the requests: {text:?}"
        );
        Ok(format!("{} lines of {pod}", text.lines().count()))
    }

    async fn exec(&mut self) -> anyhow::Result<String> {
        let pod = self.first()?.name_any();
        let output = self.run(&pod, &["echo", "hello"]).await?;
        ensure!(output == "hello\n", "echo printed {output:?}");
        let (_, status) = self.run_any(&pod, &["exit", "7"]).await?;
        ensure!(status == 7, "exit 7 ended with {status}");
        Ok("statuses 0 and 7".to_owned())
    }

    async fn restart(&mut self) -> anyhow::Result<String> {
        let pod = self.first()?.name_any();
        let status = |pod: &Pod| pod.status.clone()?.container_statuses?.into_iter().next();
        let before = status(self.first()?).context("the pod has no container status")?;
        let id = before.container_id.unwrap_or_default();
        let id = id.split_once("://").map_or(id.as_str(), |(_, id)| id);
        kill(self.cri_socket, id).await?;
        let mut count = 0;
        watch_until(self.api(), &pod, |seen| {
            let now = seen.and_then(status);
            count = now.as_ref().map_or(0, |now| now.restart_count);
            now.is_some_and(|now| now.ready && now.restart_count > before.restart_count)
        })
        .await?;
        self.pods = rolled_out(self.client, objects::REPLICAS).await?;
        Ok(format!("{pod}: {count} restart"))
    }

    async fn scale(&mut self) -> anyhow::Result<String> {
        for replicas in [5, objects::REPLICAS] {
            let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), NAMESPACE);
            let patch = json!({ "spec": { "replicas": replicas } });
            deployments
                .patch_scale(NAME, &PatchParams::default(), &Patch::Merge(&patch))
                .await?;
            self.pods = rolled_out(self.client, replicas).await?;
            ensure!(
                self.pods.len() == usize::try_from(replicas)?,
                "{} pods are there",
                self.pods.len()
            );
        }
        Ok(String::new())
    }

    async fn delete(&mut self) -> anyhow::Result<String> {
        let (client, foreground) = (self.client.clone(), DeleteParams::foreground());
        Api::<Deployment>::namespaced(client.clone(), NAMESPACE)
            .delete(NAME, &foreground)
            .await?;
        Api::<Service>::namespaced(client.clone(), NAMESPACE)
            .delete(NAME, &DeleteParams::default())
            .await?;
        Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE)
            .delete(NAME, &DeleteParams::default())
            .await?;
        Api::<Secret>::namespaced(client.clone(), NAMESPACE)
            .delete(NAME, &DeleteParams::default())
            .await?;
        watch_until(
            Api::<Deployment>::namespaced(client.clone(), NAMESPACE),
            NAME,
            |d| d.is_none(),
        )
        .await?;
        watch_until_all(&self.api(), "to be gone", <[Pod]>::is_empty).await?;
        let selector = ListParams::default().labels(&format!("app={NAME}"));
        let sets = Api::<ReplicaSet>::namespaced(client.clone(), NAMESPACE)
            .list(&selector)
            .await?;
        ensure!(sets.items.is_empty(), "a ReplicaSet is left");
        self.until_no_slices().await?;
        self.until_no_sandboxes().await?;
        ensure!(
            reach::get(self.service, "/").await.is_err(),
            "the Service's address still answers"
        );
        Ok(String::new())
    }

    async fn until_no_slices(&self) -> anyhow::Result<()> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), NAMESPACE);
        let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={NAME}"));
        eventually("the Service's EndpointSlices are gone", async || {
            Ok(slices.list(&selector).await?.items.is_empty())
        })
        .await
    }

    async fn until_no_sandboxes(&self) -> anyhow::Result<()> {
        let mut runtime = connect(self.cri_socket).await?;
        let label = (
            "io.kubernetes.pod.namespace".to_owned(),
            NAMESPACE.to_owned(),
        );
        eventually("the runtime has no sandbox of the demo", async || {
            let filter = cri::PodSandboxFilter {
                label_selector: [label.clone()].into(),
                ..Default::default()
            };
            let request = cri::ListPodSandboxRequest {
                filter: Some(filter),
            };
            let sandboxes = runtime.list_pod_sandbox(request).await?.into_inner().items;
            Ok(!sandboxes.iter().any(|s| {
                s.metadata
                    .as_ref()
                    .is_some_and(|m| m.name.starts_with(&format!("{NAME}-")))
            }))
        })
        .await
    }
}
