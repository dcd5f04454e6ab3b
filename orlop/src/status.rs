//! `orlop status`: what the node is doing, from the API, and from the kubelet through it.

use anyhow::Context;
use kube::Client;
use serde_json::{Value, json};

use crate::cli;
use crate::layout::Layout;
use crate::node;

/// Prints the state of every node, its pods and the Services.
pub async fn run(options: cli::Status) -> anyhow::Result<()> {
    let layout = Layout::new(&std::path::absolute(&options.root.root)?);
    let kubeconfig = options.kubeconfig.unwrap_or_else(|| layout.kubeconfig());
    let client = node::client(&kubeconfig)
        .await
        .context("is `orlop up` running? status asks its API")?;
    if let Some(cli::StatusOf::Policy { pod, namespace }) = options.what {
        return policy(&client, &pod, &namespace, options.output).await;
    }
    let state = collect(&client).await.context("ask the API server")?;
    match options.output {
        cli::StatusForm::Json => println!("{}", serde_json::to_string_pretty(&state)?),
        cli::StatusForm::Text => print!("{}", text(&state)),
    }
    Ok(())
}

/// Prints what network policies allow to and from a pod.
async fn policy(
    client: &Client,
    pod: &str,
    namespace: &str,
    form: cli::StatusForm,
) -> anyhow::Result<()> {
    let (namespace, pod) = pod.split_once('/').unwrap_or((namespace, pod));
    let object = get(
        client,
        &format!("/api/v1/namespaces/{namespace}/pods/{pod}"),
    )
    .await?;
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
    let list = get(client, &path).await?;
    let object: proxy::policy::object::Pod =
        serde_json::from_value(object).context("read the pod")?;
    let policies = items(&list).iter().cloned().map(serde_json::from_value);
    let policies: Vec<_> = policies
        .collect::<Result<_, _>>()
        .context("read the network policies")?;
    let explained = proxy::policy::explain::explain(&object, &policies)
        .map_err(|error| anyhow::anyhow!("network policy {error}"))?;
    match form {
        cli::StatusForm::Json => println!("{}", serde_json::to_string_pretty(&explained)?),
        cli::StatusForm::Text => print!("{}", policy_text(namespace, pod, explained.as_deref())),
    }
    Ok(())
}

fn policy_text(
    namespace: &str,
    pod: &str,
    explained: Option<&[proxy::policy::explain::Explanation]>,
) -> String {
    let mut lines = vec![format!("pod {namespace}/{pod}")];
    let Some(explained) = explained else {
        lines.push("  no policy holds for it: it has the node's address, or has ended".to_owned());
        return lines.join("\n") + "\n";
    };
    for direction in explained {
        let name = direction.direction;
        if !direction.isolated {
            lines.push(format!("  {name}: all is allowed, no policy isolates it"));
            continue;
        }
        lines.push(format!("  {name}: only this is allowed"));
        for policy in &direction.policies {
            lines.push(format!("    by policy {}:", policy.policy));
            if policy.allows.is_empty() {
                lines.push("      nothing".to_owned());
            }
            let allowed = policy.allows.iter();
            lines.extend(allowed.map(|what| format!("      {what}")));
        }
    }
    lines
        .push("  always: connections that stand, the pod itself, and from its own node".to_owned());
    lines.join("\n") + "\n"
}

async fn get(client: &Client, path: &str) -> anyhow::Result<Value> {
    let request = http::Request::get(path).body(Vec::new())?;
    client
        .request(request)
        .await
        .with_context(|| format!("get {path}"))
}

fn items(list: &Value) -> &[Value] {
    list["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

async fn collect(client: &Client) -> anyhow::Result<Value> {
    let (mut nodes, mut pods, mut waits) = (Vec::new(), Vec::new(), Vec::new());
    for node in items(&get(client, "/api/v1/nodes").await?) {
        let conditions = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        let ready = conditions
            .clone()
            .find(|condition| condition["type"] == "Ready")
            .cloned()
            .unwrap_or_default();
        nodes.push(json!({
            "name": name(node), "ready": ready["status"] == "True", "message": ready["message"],
            "addresses": node["status"]["addresses"], "podCIDRs": node["spec"]["podCIDRs"],
            "kubelet": node["status"]["nodeInfo"]["kubeletVersion"], "runtime": node["status"]["nodeInfo"]["containerRuntimeVersion"],
        }));
        match get(
            client,
            &format!("/api/v1/nodes/{}/proxy/orlop/pods", name(node)),
        )
        .await
        {
            Ok(answer) => pods.extend(answer["pods"].as_array().cloned().unwrap_or_default()),
            Err(error) => waits.push(json!(format!(
                "the kubelet of {} does not answer: {error:#}",
                name(node)
            ))),
        }
    }
    for pod in items(&get(client, "/api/v1/pods?fieldSelector=spec.nodeName%3D").await?) {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let scheduled = conditions
            .clone()
            .find(|condition| condition["type"] == "PodScheduled");
        let why = scheduled
            .and_then(|condition| condition["message"].as_str())
            .unwrap_or("not scheduled yet");
        waits.push(json!(format!(
            "{}/{}: {why}",
            pod["metadata"]["namespace"].as_str().unwrap_or_default(),
            name(pod)
        )));
    }
    Ok(
        json!({ "nodes": nodes, "pods": pods, "services": services(client).await?, "waiting": waits }),
    )
}

async fn services(client: &Client) -> anyhow::Result<Vec<Value>> {
    let slices = get(client, "/apis/discovery.k8s.io/v1/endpointslices").await?;
    let services = get(client, "/api/v1/services").await?;
    let endpoints = |service: &Value| -> Vec<String> {
        let mine = items(&slices).iter().filter(|slice| {
            slice["metadata"]["namespace"] == service["metadata"]["namespace"]
                && slice["metadata"]["labels"]["kubernetes.io/service-name"]
                    == service["metadata"]["name"]
        });
        mine.flat_map(|slice| {
            let ports: Vec<_> = slice["ports"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|port| port["port"].as_u64())
                .collect();
            let ready = slice["endpoints"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|endpoint| endpoint["conditions"]["ready"] != false);
            let addresses: Vec<_> = ready
                .filter_map(|endpoint| endpoint["addresses"][0].as_str())
                .collect();
            addresses
                .into_iter()
                .flat_map(move |address| {
                    ports
                        .clone()
                        .into_iter()
                        .map(move |port| join(address, port))
                })
                .collect::<Vec<_>>()
        })
        .collect()
    };
    let rows = items(&services).iter().map(|service| {
        json!({
            "namespace": service["metadata"]["namespace"], "name": name(service), "type": service["spec"]["type"],
            "clusterIPs": service["spec"]["clusterIPs"], "ports": service["spec"]["ports"], "endpoints": endpoints(service),
        })
    });
    Ok(rows.collect())
}

fn join(address: &str, port: u64) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn list(value: &Value) -> String {
    let texts = value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join(", ")
}

fn text(state: &Value) -> String {
    let mut lines = Vec::new();
    let each = |field: &str| state[field].as_array().cloned().unwrap_or_default();
    for node in each("nodes") {
        let ready = if node["ready"] == true {
            "Ready".to_owned()
        } else {
            format!(
                "not ready: {}",
                node["message"].as_str().unwrap_or_default()
            )
        };
        let cidrs = list(&node["podCIDRs"]);
        lines.push(format!(
            "node {}  {ready}  pods from {cidrs}  {}",
            node["name"].as_str().unwrap_or_default(),
            node["runtime"].as_str().unwrap_or_default()
        ));
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<48} {:<12} {:<18} {}",
        "POD", "STAGE", "ADDRESS", "TIMES"
    ));
    for pod in each("pods") {
        let text = |field: &str| pod[field].as_str().unwrap_or_default().to_owned();
        let stages = pod["stages"].as_array().cloned().unwrap_or_default();
        let times = stages.iter().map(|stage| {
            format!(
                "{} {} ms",
                stage["name"].as_str().unwrap_or_default(),
                stage["tookMs"]
            )
        });
        let pod_name = format!("{}/{}", text("namespace"), text("name"));
        lines.push(format!(
            "{pod_name:<48} {:<12} {:<18} {}",
            text("stage"),
            list(&pod["ips"]),
            times.collect::<Vec<_>>().join(", ")
        ));
        for reason in pod["waiting"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            lines.push(format!("  waits: {reason}"));
        }
    }
    lines.push(String::new());
    lines.push(format!(
        "{:<32} {:<13} {:<18} {:<24} {}",
        "SERVICE", "TYPE", "ADDRESS", "PORTS", "ENDPOINTS"
    ));
    for service in each("services") {
        let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        let ports = service["ports"].as_array().cloned().unwrap_or_default();
        let port = |port: &Value| {
            let node = port["nodePort"]
                .as_u64()
                .map_or_else(String::new, |number| format!(":{number}"));
            format!(
                "{}{node}/{}",
                port["port"],
                port["protocol"].as_str().unwrap_or("TCP")
            )
        };
        let ports = ports.iter().map(port).collect::<Vec<_>>().join(",");
        let service_name = format!("{}/{}", text("namespace"), text("name"));
        lines.push(format!(
            "{service_name:<32} {:<13} {:<18} {ports:<24} {}",
            text("type"),
            list(&service["clusterIPs"]),
            list(&service["endpoints"])
        ));
    }
    for reason in each("waiting") {
        lines.push(format!("waits: {}", reason.as_str().unwrap_or_default()));
    }
    lines.join("\n") + "\n"
}
