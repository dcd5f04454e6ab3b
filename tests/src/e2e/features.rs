//! What pods, their volumes, probes and Services promise, each seen as a user sees it, on the
//! cluster that the verbs of kubectl are tried on.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::kubectl::{contains, eventually, manifest, on_shared_cluster};
use crate::cluster::Cluster;

const IMAGE: &str = "orlop.local/demo:v1";

/// One claim each; none needs another.
pub fn scenarios() -> Vec<Scenario> {
    macro_rules! scenarios {
        ($($name:literal => $test:ident),* $(,)?) => { vec![$(Scenario {
            name: concat!("features-", $name),
            shares_cluster: true,
            run: |program| on_shared_cluster(program, $test),
        }),*] };
    }
    scenarios! {
        "init-containers" => init_containers,
        "sidecars" => sidecars,
        "ends" => ends,
        "images" => images,
        "late-configuration" => late_configuration,
        "volumes" => volumes,
        "readiness" => readiness,
        "liveness" => liveness,
        "host-namespaces" => host_namespaces,
        "services-of-every-type" => services_of_every_type,
        "network-policies" => network_policies,
        "rolling-update-under-load" => rolling_update_under_load,
        "owners" => owners,
        "finalizers" => finalizers,
        "unschedulable" => unschedulable,
    }
}

/// Applies a pod with this spec, whose containers have the demo's image and a short grace period unless they say otherwise.
fn pod(cluster: &Cluster, name: &str, mut spec: Value) -> anyhow::Result<()> {
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if container.get("image").is_none() {
                container["image"] = IMAGE.into();
            }
        }
    }
    spec["terminationGracePeriodSeconds"] = 1.into();
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": name } }, "spec": spec });
    cluster
        .kubectl_with(&["apply", "-f", "-"], &pod.to_string())
        .map(drop)
}

/// A field of a pod, by its JSON path.
fn field(cluster: &Cluster, name: &str, path: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["get", "pod", name, "-o", &format!("jsonpath={{{path}}}")])
}

/// What `kubectl get pod` shows as its status.
fn shown(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let line = cluster.kubectl(&["get", "pod", name, "--no-headers"])?;
    let word = line.split_whitespace().nth(2);
    Ok(word.context("no status")?.to_owned())
}

fn shows(cluster: &Cluster, name: &str, status: &str) -> anyhow::Result<()> {
    eventually(&format!("{name} shows {status}"), || {
        Ok(shown(cluster, name)? == status)
    })
}

fn ready(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let pod = format!("pod/{name}");
    cluster
        .kubectl(&["wait", &pod, "--for=condition=Ready", "--timeout=30s"])
        .map(drop)
}

fn remove(cluster: &Cluster, names: &[&str]) -> anyhow::Result<()> {
    let mut words = vec!["delete", "pod", "--timeout=30s"];
    words.extend(names);
    cluster.kubectl(&words).map(drop)
}

fn init_containers(cluster: &Cluster) -> anyhow::Result<()> {
    let app = json!([{ "name": "main", "args": ["sleep", "3600"] }]);
    let good = json!([{ "name": "first", "args": ["echo", "1"] }, { "name": "second", "args": ["echo", "2"] }]);
    pod(
        cluster,
        "inits",
        json!({ "initContainers": good, "containers": app }),
    )?;
    ready(cluster, "inits")?;
    let bad = json!([{ "name": "bad", "args": ["exit", "3"] }]);
    pod(
        cluster,
        "init-never",
        json!({ "restartPolicy": "Never", "initContainers": bad, "containers": app }),
    )?;
    shows(cluster, "init-never", "Init:Error")?;
    pod(
        cluster,
        "init-always",
        json!({ "initContainers": bad, "containers": app }),
    )?;
    shows(cluster, "init-always", "Init:CrashLoopBackOff")?;
    ensure!(
        field(cluster, "init-never", ".status.phase")? == "Failed",
        "a pod whose init container failed is not Failed"
    );
    remove(cluster, &["inits", "init-never", "init-always"])
}

fn sidecars(cluster: &Cluster) -> anyhow::Result<()> {
    let side = json!([{ "name": "side", "restartPolicy": "Always", "args": ["sleep", "3600"] }]);
    let spec = json!({ "restartPolicy": "Never", "initContainers": side, "containers": [{ "name": "main", "args": ["echo", "x"] }] });
    pod(cluster, "sidecar", spec)?;
    eventually(
        "a pod succeeds with its app, whatever its sidecar does",
        || Ok(field(cluster, "sidecar", ".status.phase")? == "Succeeded"),
    )?;
    remove(cluster, &["sidecar"])
}

fn ends(cluster: &Cluster) -> anyhow::Result<()> {
    let one = |policy: &str, words: &[&str]| json!({ "restartPolicy": policy, "containers": [{ "name": "main", "args": words }] });
    pod(cluster, "completes", one("Never", &["echo", "x"]))?;
    pod(cluster, "fails", one("Never", &["exit", "7"]))?;
    pod(cluster, "crashes", one("Always", &["exit", "1"]))?;
    let mut late = one("Always", &["sleep", "3600"]);
    late["activeDeadlineSeconds"] = 1.into();
    pod(cluster, "expires", late)?;
    let missing = json!({ "restartPolicy": "Never", "containers": [{ "name": "main", "command": ["/missing"] }] });
    pod(cluster, "no-program", missing)?;
    shows(cluster, "completes", "Completed")?;
    shows(cluster, "fails", "Error")?;
    shows(cluster, "crashes", "CrashLoopBackOff")?;
    shows(cluster, "no-program", "StartError")?;
    ensure!(
        field(
            cluster,
            "fails",
            ".status.containerStatuses[0].state.terminated.exitCode"
        )? == "7",
        "the exit code is not 7"
    );
    eventually("a pod over its deadline fails", || {
        Ok(field(cluster, "expires", ".status.reason")? == "DeadlineExceeded")
    })?;
    // A container that never started has written nothing; asking for that is no broken connection.
    cluster.kubectl(&["logs", "no-program"])?;
    remove(
        cluster,
        &["completes", "fails", "crashes", "expires", "no-program"],
    )
}

fn images(cluster: &Cluster) -> anyhow::Result<()> {
    let with = |image: &str, policy: &str| json!({ "containers": [{ "name": "main", "image": image, "imagePullPolicy": policy }] });
    pod(cluster, "no-pull", with("nowhere.invalid/x:v1", "Never"))?;
    pod(cluster, "no-name", with("Not:A:Name", "IfNotPresent"))?;
    shows(cluster, "no-pull", "ErrImageNeverPull")?;
    shows(cluster, "no-name", "InvalidImageName")?;
    remove(cluster, &["no-pull", "no-name"])
}

fn late_configuration(cluster: &Cluster) -> anyhow::Result<()> {
    let env = json!([{ "name": "A", "valueFrom": { "configMapKeyRef": { "name": "late", "key": "a" } } }]);
    let spec = json!({ "containers": [{ "name": "main", "args": ["sleep", "3600"], "env": env }] });
    pod(cluster, "waits", spec)?;
    shows(cluster, "waits", "CreateContainerConfigError")?;
    let why = field(
        cluster,
        "waits",
        ".status.containerStatuses[0].state.waiting.message",
    )?;
    contains(&why, &["configmap \"late\" not found"])?;
    cluster.kubectl(&["create", "configmap", "late", "--from-literal=a=b"])?;
    ready(cluster, "waits")?;
    cluster.kubectl(&["delete", "configmap", "late"])?;
    remove(cluster, &["waits"])
}

fn volumes(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "configmap", "words", "--from-literal=word=before"])?;
    let mount = |name: &str, at: &str| json!({ "name": name, "mountPath": at });
    let token = json!({ "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } });
    let labels =
        json!({ "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] });
    let spec = json!({
        "containers": [{ "name": "main", "args": ["sleep", "3600"], "volumeMounts": [
            mount("words", "/words"), mount("labels", "/labels"), mount("token", "/token"), mount("memory", "/memory"),
            { "name": "memory", "mountPath": "/part", "subPath": "a/b" }] }],
        "volumes": [
            { "name": "words", "configMap": { "name": "words" } }, { "name": "labels", "downwardAPI": labels },
            { "name": "token", "projected": { "sources": [token] } }, { "name": "memory", "emptyDir": { "medium": "Memory" } }],
    });
    pod(cluster, "volumes", spec)?;
    ready(cluster, "volumes")?;
    let cat = |file: &str| cluster.kubectl(&["exec", "volumes", "--", "/demo", "cat", file]);
    ensure!(cat("/words/word")? == "before", "the ConfigMap's file");
    ensure!(
        cat("/labels/labels")? == "app=\"volumes\"",
        "the labels' file"
    );
    let token = cat("/token/token")?;
    let who = cluster.kubectl(&[
        "--kubeconfig=/dev/null",
        "--insecure-skip-tls-verify",
        "--server=https://127.0.0.1:6443",
        "--token",
        &token,
        "auth",
        "whoami",
    ])?;
    contains(&who, &["system:serviceaccount:default:default"])?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "words",
        "-p",
        r#"{"data":{"word":"after"}}"#,
    ])?;
    eventually("a changed ConfigMap reaches its volume", || {
        Ok(cat("/words/word")? == "after")
    })?;
    cluster.kubectl(&["delete", "configmap", "words"])?;
    remove(cluster, &["volumes"])
}

/// The endpoints of a Service that are ready.
fn ready_endpoints(cluster: &Cluster, service: &str) -> anyhow::Result<usize> {
    let label = format!("kubernetes.io/service-name={service}");
    let path = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
    let addresses = cluster.kubectl(&["get", "endpointslices", "-l", &label, "-o", path])?;
    Ok(addresses.split_whitespace().count())
}

fn readiness(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "configmap", "gate", "--from-literal=open="])?;
    let probe = json!({ "exec": { "command": ["/demo", "cat", "/gate/open"] }, "periodSeconds": 1, "failureThreshold": 1 });
    let main = json!({ "name": "main", "args": ["serve", "8080"], "readinessProbe": probe, "volumeMounts": [{ "name": "gate", "mountPath": "/gate" }] });
    let spec = json!({ "containers": [main], "volumes": [{ "name": "gate", "configMap": { "name": "gate" } }] });
    pod(cluster, "gated", spec)?;
    cluster.kubectl(&["expose", "pod", "gated", "--port=80", "--target-port=8080"])?;
    let endpoints = |count: usize| {
        eventually(&format!("{count} endpoints are ready"), || {
            Ok(ready_endpoints(cluster, "gated")? == count)
        })
    };
    endpoints(1)?;
    let patch =
        |text: &str| cluster.kubectl(&["patch", "configmap", "gate", "--type=merge", "-p", text]);
    patch(r#"{"data":{"open":null,"shut":""}}"#)?;
    endpoints(0)?;
    patch(r#"{"data":{"open":"","shut":null}}"#)?;
    endpoints(1)?;
    cluster.kubectl(&["delete", "service/gated", "configmap/gate"])?;
    remove(cluster, &["gated"])
}

fn liveness(cluster: &Cluster) -> anyhow::Result<()> {
    let probe = json!({ "tcpSocket": { "port": 9999 }, "periodSeconds": 1, "failureThreshold": 1 });
    let spec = json!({ "containers": [{ "name": "main", "args": ["sleep", "3600"], "livenessProbe": probe }] });
    pod(cluster, "deaf", spec)?;
    eventually(
        "a container that fails its liveness probe is restarted",
        || {
            let count = field(cluster, "deaf", ".status.containerStatuses[0].restartCount")?;
            Ok(count.parse().unwrap_or(0) > 0)
        },
    )?;
    contains(
        &cluster.kubectl(&["events", "--for", "pod/deaf"])?,
        &[
            "Liveness probe failed",
            "Container main failed liveness probe, will be restarted",
        ],
    )?;
    remove(cluster, &["deaf"])
}

fn host_namespaces(cluster: &Cluster) -> anyhow::Result<()> {
    let main = json!({ "name": "main", "args": ["cat", "/proc/sys/kernel/hostname"] });
    let spec = json!({ "restartPolicy": "Never", "hostNetwork": true, "hostPID": true, "hostIPC": true, "containers": [main] });
    pod(cluster, "of-the-host", spec)?;
    shows(cluster, "of-the-host", "Completed")?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    ensure!(
        cluster.kubectl(&["logs", "of-the-host"])? == host,
        "it has another host name"
    );
    remove(cluster, &["of-the-host"])
}

fn services_of_every_type(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl_with(
        &["apply", "-f", "-"],
        &manifest("types", 1, &["serve", "8080"]),
    )?;
    cluster.kubectl(&["rollout", "status", "deployment/types", "--timeout=60s"])?;
    let service = |name: &str, mut spec: Value| {
        if spec.get("externalName").is_none() {
            spec["selector"] = json!({ "app": "types" });
            spec["ports"] = json!([{ "port": 80, "targetPort": 8080 }]);
        }
        let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec });
        cluster.kubectl_with(&["apply", "-f", "-"], &object.to_string())
    };
    service(
        "by-name",
        json!({ "externalName": "example.org", "type": "ExternalName" }),
    )?;
    service("headless", json!({ "clusterIP": "None" }))?;
    service("balanced", json!({ "type": "LoadBalancer" }))?;
    // The last one shows that none before it stopped the proxy from following.
    service("plain", json!({}))?;
    ensure!(
        cluster
            .kubectl(&["get", "svc", "by-name", "-o", "jsonpath={.spec}"])?
            .find("ports")
            .is_none(),
        "an ExternalName Service got ports"
    );
    let address = cluster.kubectl(&["get", "svc", "plain", "-o", "jsonpath={.spec.clusterIP}"])?;
    let url = format!("http://{address}:80/version");
    eventually("a Service made after those of other types answers", || {
        let mut get = cluster.command(&["exec", "deployment/types", "--", "/demo", "get", &url])?;
        Ok(get.output()?.status.success())
    })?;
    cluster
        .kubectl(&[
            "delete",
            "service/by-name",
            "service/headless",
            "service/balanced",
            "service/plain",
            "deployment/types",
        ])
        .map(drop)
}

fn network_policies(cluster: &Cluster) -> anyhow::Result<()> {
    let port = json!([{ "name": "http", "containerPort": 8080 }]);
    let probe =
        json!({ "tcpSocket": { "port": "http" }, "periodSeconds": 1, "failureThreshold": 1 });
    let main = json!({ "name": "main", "args": ["serve", "8080"], "ports": port, "readinessProbe": probe });
    for name in ["guarded", "friend", "stranger"] {
        pod(cluster, name, json!({ "containers": [main] }))?;
    }
    for name in ["guarded", "friend", "stranger"] {
        ready(cluster, name)?;
    }
    cluster.kubectl(&[
        "expose",
        "pod",
        "guarded",
        "--port=80",
        "--target-port=http",
    ])?;
    let service = ["get", "svc", "guarded", "-o", "jsonpath={.spec.clusterIP}"];
    let urls = [
        format!(
            "http://{}:8080/",
            field(cluster, "guarded", ".status.podIP")?
        ),
        format!("http://{}:80/", cluster.kubectl(&service)?),
    ];
    let reach = |from: &str, wanted: bool| {
        urls.iter().try_for_each(|url| {
            let what = format!(
                "{from} {} {url}",
                if wanted { "reaches" } else { "does not reach" }
            );
            eventually(&what, || {
                let mut get = cluster.command(&["exec", from, "--", "/demo", "get", url])?;
                Ok(get.output()?.status.success() == wanted)
            })
        })
    };
    reach("friend", true)?;
    reach("stranger", true)?;
    let spec = json!({
        "podSelector": { "matchLabels": { "app": "guarded" } },
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "friend" } } }], "ports": [{ "port": "http" }] }]
    });
    let policy = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "guard" }, "spec": spec });
    cluster.kubectl_with(&["apply", "-f", "-"], &policy.to_string())?;
    reach("stranger", false)?;
    reach("friend", true)?;
    reach("guarded", true)?;
    cluster.kubectl(&["label", "pod", "stranger", "app=friend", "--overwrite"])?;
    reach("stranger", true)?;
    cluster.kubectl(&["label", "pod", "friend", "app=nobody", "--overwrite"])?;
    reach("friend", false)?;
    let restarts_and_readiness = ".status.containerStatuses[0]['ready','restartCount']";
    ensure!(
        field(cluster, "guarded", restarts_and_readiness)? == "true 0",
        "the kubelet's probes do not reach an isolated pod"
    );
    cluster.kubectl(&["delete", "networkpolicy/guard"])?;
    reach("friend", true)?;
    cluster.kubectl(&["delete", "service/guarded"])?;
    remove(cluster, &["guarded", "friend", "stranger"])
}

fn rolling_update_under_load(cluster: &Cluster) -> anyhow::Result<()> {
    const UPDATES: usize = 10;
    let mut deployment: Value = serde_json::from_str(&manifest("rolled", 3, &["serve", "8080"]))?;
    let main = &mut deployment["spec"]["template"]["spec"]["containers"][0];
    main["readinessProbe"] =
        json!({ "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1 });
    // No preStop hook: the kubelet itself waits until the node's rules have left the pod. With the pod's processes in one
    // namespace the server is no init, and SIGTERM ends it at once.
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["shareProcessNamespace"] = true.into();
    spec["terminationGracePeriodSeconds"] = 5.into();
    cluster.kubectl_with(&["apply", "-f", "-"], &deployment.to_string())?;
    cluster.kubectl(&["rollout", "status", "deployment/rolled", "--timeout=60s"])?;
    cluster.kubectl(&[
        "expose",
        "deployment",
        "rolled",
        "--port=80",
        "--target-port=8080",
    ])?;
    pod(
        cluster,
        "client",
        json!({ "containers": [{ "name": "main", "args": ["sleep", "3600"] }] }),
    )?;
    ready(cluster, "client")?;
    let address = cluster.kubectl(&["get", "svc", "rolled", "-o", "jsonpath={.spec.clusterIP}"])?;
    let url = format!("http://{address}:80/");
    let load = ["exec", "client", "--", "/demo", "get", &url, "100"];
    eventually("the Service answers", || {
        Ok(cluster.command(&load)?.output()?.status.success())
    })?;
    for round in 1..=UPDATES {
        // As `rollout restart`, which refuses a second one within a second.
        let template = json!({ "metadata": { "annotations": { "round": round.to_string() } } });
        let patch = json!({ "spec": { "template": template } }).to_string();
        cluster.kubectl(&["patch", "deployment/rolled", "--patch", &patch])?;
        let mut status =
            cluster.command(&["rollout", "status", "deployment/rolled", "--timeout=60s"])?;
        let mut rollout = status.stdout(std::process::Stdio::null()).spawn()?;
        let mut answers = 0;
        let ended = loop {
            // One that isn't answered ends the client with an error.
            let answered = cluster.kubectl(&load);
            answers += answered
                .with_context(|| format!("update {round} of {UPDATES}"))?
                .lines()
                .count();
            if let Some(ended) = rollout.try_wait()? {
                break ended;
            }
        };
        ensure!(
            ended.success() && answers >= 100,
            "update {round} ended with {ended} after {answers} answers"
        );
    }
    cluster.kubectl(&["delete", "deployment/rolled", "service/rolled"])?;
    remove(cluster, &["client"])
}

fn owners(cluster: &Cluster) -> anyhow::Result<()> {
    let made = || {
        cluster.kubectl_with(
            &["apply", "-f", "-"],
            &manifest("owner", 1, &["sleep", "3600"]),
        )?;
        cluster.kubectl(&["rollout", "status", "deployment/owner", "--timeout=60s"])
    };
    let left = |kinds: &str| cluster.kubectl(&["get", kinds, "-l", "app=owner", "-o", "name"]);
    made()?;
    cluster.kubectl(&["delete", "deployment", "owner", "--cascade=orphan"])?;
    let set = left("replicasets")?;
    ensure!(
        set.lines().count() == 1 && !left("pods")?.is_empty(),
        "an orphan went with its owner"
    );
    let references = cluster.kubectl(&[
        "get",
        set.trim(),
        "-o",
        "jsonpath={.metadata.ownerReferences}",
    ])?;
    ensure!(
        references.is_empty(),
        "an orphan still names its owner: {references}"
    );
    cluster.kubectl(&[
        "delete",
        set.trim(),
        "--cascade=foreground",
        "--timeout=30s",
    ])?;
    ensure!(
        left("pods")?.is_empty(),
        "an owner went before what it owns"
    );
    made()?;
    cluster.kubectl(&["delete", "deployment", "owner"])?;
    eventually("what a deleted Deployment owned goes too", || {
        Ok(left("replicasets,pods")?.is_empty())
    })
}

fn finalizers(cluster: &Cluster) -> anyhow::Result<()> {
    let map = |namespace: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "held", "namespace": namespace, "finalizers": ["example.org/hold"] } }).to_string()
    };
    cluster.kubectl(&["create", "namespace", "going"])?;
    cluster.kubectl_with(&["apply", "-f", "-"], &map("going"))?;
    cluster.kubectl(&["delete", "namespace", "going", "--wait=false"])?;
    let refused = cluster.kubectl_refused(&["create", "configmap", "x", "-n", "going"])?;
    contains(&refused, &["because it is being terminated"])?;
    eventually("the namespace says what holds it", || {
        let status = cluster.kubectl(&[
            "get",
            "namespace",
            "going",
            "-o",
            "jsonpath={.status.conditions[*].message}",
        ])?;
        Ok(status.contains("configmaps"))
    })?;
    cluster.kubectl(&[
        "patch",
        "configmap",
        "held",
        "-n",
        "going",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ])?;
    cluster
        .kubectl(&["wait", "namespace/going", "--for=delete", "--timeout=30s"])
        .map(drop)
}

fn unschedulable(cluster: &Cluster) -> anyhow::Result<()> {
    let one = json!([{ "name": "main", "args": ["sleep", "3600"] }]);
    pod(
        cluster,
        "picky",
        json!({ "nodeSelector": { "disk": "fast" }, "containers": one }),
    )?;
    let big = json!([{ "name": "main", "resources": { "requests": { "cpu": "9000" } } }]);
    pod(cluster, "huge", json!({ "containers": big }))?;
    let says = |name: &str, text: &str| {
        eventually(&format!("{name} says {text}"), || {
            Ok(field(
                cluster,
                name,
                ".status.conditions[?(@.type==\"PodScheduled\")].message",
            )?
            .contains(text))
        })
    };
    says(
        "picky",
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    )?;
    says("huge", "0/1 nodes are available: 1 Insufficient cpu.")?;
    let node = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
    cluster.kubectl(&["label", node.trim(), "disk=fast"])?;
    ready(cluster, "picky")?;
    cluster.kubectl(&["label", node.trim(), "disk-"])?;
    remove(cluster, &["picky", "huge"])
}
