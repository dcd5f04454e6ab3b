//! What users do with a real kubectl, verb by verb, against one cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Scenario;
use crate::cluster::Cluster;
use crate::leak::Snapshot;
use crate::tally::Outcome;
use crate::workspace::run;

const PATIENCE: Duration = Duration::from_secs(30);
/// The demo's image, which `orlop image demo` imports without running the demo.
const IMAGE: &str = "orlop.local/demo";

/// One cluster serves all verbs: starting one for each would take longer than they do.
/// With what was there before it.
static CLUSTER: Mutex<Option<(Cluster, Snapshot)>> = Mutex::new(None);

/// Tries until true.
pub fn eventually(
    what: &str,
    mut holds: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(
            start.elapsed() < PATIENCE,
            "not true in {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Puts the demo's image into the cluster's store.
pub fn load_image(cluster: &Cluster, program: &Path) -> anyhow::Result<()> {
    run(Command::new(program)
        .args(["image", "demo", "--root"])
        .arg(cluster.root()))
    .map(drop)
}

/// A Deployment whose container runs the demo's program with these words.
pub fn manifest(name: &str, replicas: u32, words: &[&str]) -> String {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": {
            "metadata": { "labels": { "app": name } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "main", "image": format!("{IMAGE}:v1"), "args": words }] } } },
    })
    .to_string()
}

/// The verbs, in an order in which each finds what it needs.
pub fn scenarios() -> Vec<Scenario> {
    macro_rules! scenarios {
        ($($name:literal => $test:ident),* $(,)?) => { vec![$(Scenario {
            name: concat!("kubectl-", $name),
            shares_cluster: true,
            run: |program| on_shared_cluster(program, $test),
        }),*] };
    }
    scenarios! {
        "get" => get,
        "watch" => watch,
        "describe" => describe,
        "explain" => explain,
        "apply" => apply,
        "create" => create,
        "edit-patch" => edit_and_patch,
        "label-annotate" => label_and_annotate,
        "rollout" => rollout,
        "scale-wait" => scale_and_wait,
        "logs" => logs,
        "exec" => exec,
        "attach" => attach,
        "events" => events,
        "errors" => errors,
        "status" => status,
        "delete" => delete,
    }
}

/// Runs a scenario on the cluster that several share, started by the first of them.
pub fn on_shared_cluster(
    program: &Path,
    test: fn(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let mut cluster = CLUSTER
        .lock()
        .map_err(|_| anyhow::anyhow!("an earlier scenario panicked"))?;
    if cluster.is_none() {
        let before = Snapshot::take();
        let started = Cluster::start(program, "kubectl", false)?;
        load_image(&started, program)?;
        started.kubectl_with(
            &["apply", "-f", "-"],
            &manifest("web", 2, &["serve", "8080"]),
        )?;
        started.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
        *cluster = Some((started, before));
    }
    let (running, _) = cluster.as_ref().context("the cluster is not running")?;
    test(running)?;
    Ok(Outcome::Passed)
}

/// Whether the cluster that the verbs share was started and not stopped yet.
pub fn cluster_runs() -> bool {
    CLUSTER.lock().is_ok_and(|cluster| cluster.is_some())
}

/// Stops the cluster that the verbs shared, if one was started; nothing of it may be left.
pub fn end() -> anyhow::Result<Outcome> {
    match CLUSTER
        .lock()
        .map_err(|_| anyhow::anyhow!("an earlier scenario panicked"))?
        .take()
    {
        Some((cluster, before)) => {
            cluster.end()?;
            before.nothing_new()?;
            Ok(Outcome::Passed)
        }
        None => Ok(Outcome::Skipped("no cluster was started".to_owned())),
    }
}

/// All of the parts are in the text, or the error shows it.
pub fn contains(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

fn get(cluster: &Cluster) -> anyhow::Result<()> {
    contains(
        &cluster.kubectl(&["get", "pods"])?,
        &[
            "NAME", "READY", "STATUS", "RESTARTS", "AGE", "web-", "1/1", "Running",
        ],
    )?;
    contains(
        &cluster.kubectl(&["get", "pods", "-o", "wide"])?,
        &["IP", "NODE", "NOMINATED NODE", "10.244."],
    )?;
    contains(
        &cluster.kubectl(&["get", "deployments,rs,svc"])?,
        &[
            "deployment.apps/web",
            "2/2",
            "replicaset.apps/web-",
            "service/kubernetes",
        ],
    )?;
    contains(
        &cluster.kubectl(&["get", "deploy", "web", "-o", "yaml"])?,
        &[
            "kind: Deployment",
            "progressDeadlineSeconds: 600",
            "maxSurge: 25%",
        ],
    )?;
    contains(
        &cluster.kubectl(&["get", "nodes"])?,
        &["Ready", "ROLES", "VERSION"],
    )?;
    contains(
        &cluster.kubectl(&["get", "nodes", "-o", "wide"])?,
        &["INTERNAL-IP", "CONTAINER-RUNTIME", "orlop://"],
    )?;
    contains(
        &cluster.kubectl(&["get", "ns"])?,
        &["default", "kube-system", "Active"],
    )?;
    contains(
        &cluster.kubectl(&[
            "get",
            "pods",
            "-A",
            "-l",
            "app=web",
            "--field-selector=status.phase=Running",
        ])?,
        &["web-"],
    )?;
    contains(
        &cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.podIP}"])?,
        &["10.244."],
    )?;
    contains(
        &cluster.kubectl(&[
            "get",
            "pods",
            "--sort-by=.metadata.name",
            "-o",
            "custom-columns=N:.metadata.name",
        ])?,
        &["web-"],
    )?;
    contains(
        &cluster.kubectl(&["api-resources"])?,
        &[
            "deployments",
            "deploy",
            "apps/v1",
            "endpointslices",
            "leases",
        ],
    )?;
    contains(
        &cluster.kubectl(&["api-versions"])?,
        &["apps/v1", "v1", "coordination.k8s.io/v1"],
    )?;
    contains(&cluster.kubectl(&["version"])?, &["Server Version: v1.36"])?;
    contains(&cluster.kubectl(&["cluster-info"])?, &["is running at"])
}

fn watch(cluster: &Cluster) -> anyhow::Result<()> {
    let words = [
        "get",
        "configmaps",
        "-w",
        "--output-watch-events",
        "--no-headers",
    ];
    let mut child = cluster.command(&words)?.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?)
        .lines()
        .map_while(Result::ok);
    lines
        .find(|line| line.contains("kube-root-ca.crt"))
        .context("the watch did not start")?;
    cluster.kubectl(&["create", "configmap", "watched", "--from-literal=a=b"])?;
    cluster.kubectl(&["delete", "configmap", "watched"])?;
    let first_word = |line: String| {
        line.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let seen: Vec<_> = lines
        .filter(|line| line.contains("watched"))
        .map(first_word)
        .take(2)
        .collect();
    child.kill()?;
    child.wait()?;
    ensure!(seen == ["ADDED", "DELETED"], "the watch showed {seen:?}");
    Ok(())
}

fn describe(cluster: &Cluster) -> anyhow::Result<()> {
    contains(
        &cluster.kubectl(&["describe", "pods", "-l", "app=web"])?,
        &[
            "Node:",
            "IP:",
            "Controlled By:  ReplicaSet/web-",
            "Ready             True",
            "Started",
        ],
    )?;
    contains(
        &cluster.kubectl(&["describe", "deployment", "web"])?,
        &[
            "2 desired | 2 updated | 2 total | 2 available",
            "ScalingReplicaSet",
            "NewReplicaSetAvailable",
        ],
    )?;
    contains(
        &cluster.kubectl(&["describe", "node"])?,
        &[
            "KubeletReady",
            "Allocatable:",
            "Non-terminated Pods:",
            "web-",
            "PodCIDR:",
        ],
    )?;
    contains(
        &cluster.kubectl(&["describe", "svc", "kubernetes"])?,
        &["Endpoints:", "TargetPort:", "6443"],
    )
}

fn explain(cluster: &Cluster) -> anyhow::Result<()> {
    contains(
        &cluster.kubectl(&["explain", "pod.spec.containers"])?,
        &["KIND:", "Pod", "image\t<string>", "livenessProbe"],
    )?;
    contains(
        &cluster.kubectl(&["explain", "deployment.spec.strategy.rollingUpdate"])?,
        &["GROUP:      apps", "maxSurge"],
    )
}

fn apply(cluster: &Cluster) -> anyhow::Result<()> {
    let service = |port: u16| {
        serde_json::json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": port, "targetPort": 8080 }] } })
        .to_string()
    };
    contains(
        &cluster.kubectl_with(&["apply", "-f", "-"], &service(80))?,
        &["service/web created"],
    )?;
    contains(
        &cluster.kubectl_with(&["apply", "-f", "-"], &service(80))?,
        &["service/web unchanged"],
    )?;
    contains(
        &cluster.kubectl_with(&["apply", "-f", "-"], &service(81))?,
        &["service/web configured"],
    )?;
    contains(
        &cluster.kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.ports[*].port}"])?,
        &["81"],
    )?;
    let map =
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"ssa"},"data":{"a":"1"}}"#;
    contains(
        &cluster.kubectl_with(&["apply", "--server-side", "-f", "-"], map)?,
        &["configmap/ssa serverside-applied"],
    )?;
    let other = map.replace("\"1\"", "\"2\"");
    let mut conflict =
        cluster.command(&["apply", "--server-side", "--field-manager=other", "-f", "-"])?;
    let mut child = conflict
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("no input")?
        .write_all(other.as_bytes())?;
    let output = child.wait_with_output()?;
    contains(
        &String::from_utf8_lossy(&output.stderr),
        &["conflict", ".data.a"],
    )?;
    cluster.kubectl_with(
        &[
            "apply",
            "--server-side",
            "--field-manager=other",
            "--force-conflicts",
            "-f",
            "-",
        ],
        &other,
    )?;
    contains(
        &cluster.kubectl(&["get", "cm", "ssa", "-o", "jsonpath={.data.a}"])?,
        &["2"],
    )?;
    cluster
        .kubectl(&["diff", "-f", "/dev/null"])
        .map(drop)
        .or(Ok(()))
}

fn create(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["create", "namespace", "other"])?;
    cluster.kubectl(&[
        "create",
        "deployment",
        "made",
        &format!("--image={IMAGE}:v1"),
        "-n",
        "other",
    ])?;
    cluster.kubectl(&[
        "rollout",
        "status",
        "deployment/made",
        "-n",
        "other",
        "--timeout=60s",
    ])?;
    cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "hidden",
        "--from-literal=key=value",
        "-n",
        "other",
    ])?;
    contains(
        &cluster.kubectl(&[
            "get",
            "secret",
            "hidden",
            "-n",
            "other",
            "-o",
            "jsonpath={.data.key}",
        ])?,
        &["dmFsdWU="],
    )?;
    cluster.kubectl(&[
        "expose",
        "deployment",
        "made",
        "--port=80",
        "--target-port=8080",
        "-n",
        "other",
    ])?;
    eventually("the exposed Service has an endpoint", || {
        Ok(cluster
            .kubectl(&[
                "get",
                "endpointslices",
                "-n",
                "other",
                "-o",
                "jsonpath={.items[*].endpoints[*].addresses[0]}",
            ])?
            .contains("10.244."))
    })?;
    cluster.kubectl(&[
        "run",
        "single",
        &format!("--image={IMAGE}:v1"),
        "-n",
        "other",
        "--",
        "sleep",
        "3600",
    ])?;
    cluster.kubectl(&[
        "wait",
        "pod/single",
        "--for=condition=Ready",
        "-n",
        "other",
        "--timeout=30s",
    ])?;
    contains(
        &cluster.kubectl(&["create", "token", "default", "-n", "other"])?,
        &["."],
    )?;
    cluster.kubectl(&["delete", "namespace", "other", "--timeout=60s"])?;
    ensure!(
        !cluster.kubectl(&["get", "pods", "-A"])?.contains("other "),
        "pods outlived their namespace"
    );
    Ok(())
}

fn edit_and_patch(cluster: &Cluster) -> anyhow::Result<()> {
    let mut edit = cluster.command(&["edit", "deployment", "web"])?;
    edit.env(
        "KUBE_EDITOR",
        "sed -i s/revisionHistoryLimit:.10/revisionHistoryLimit:\\ 7/",
    );
    contains(
        &String::from_utf8_lossy(&run(&mut edit)?.stdout),
        &["deployment.apps/web edited"],
    )?;
    contains(
        &cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.revisionHistoryLimit}",
        ])?,
        &["7"],
    )?;
    let strategic = r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}"#;
    cluster.kubectl(&["patch", "deployment", "web", "-p", strategic])?;
    contains(
        &cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[*].args[0]}",
        ])?,
        &["serve"],
    )?;
    cluster.kubectl(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/progressDeadlineSeconds","value":300}]"#,
    ])?;
    cluster.kubectl(&[
        "patch",
        "deployment",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec":{"minReadySeconds":0}}"#,
    ])?;
    cluster
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .map(drop)
}

fn label_and_annotate(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["label", "deployment", "web", "tier=front"])?;
    contains(
        &cluster.kubectl(&["get", "deployments", "-l", "tier=front", "-o", "name"])?,
        &["deployment.apps/web"],
    )?;
    contains(
        &cluster.kubectl_refused(&["label", "deployment", "web", "tier=back"])?,
        &["already has a value"],
    )?;
    cluster.kubectl(&["label", "deployment", "web", "tier-"])?;
    cluster.kubectl(&["annotate", "deployment", "web", "note=hello"])?;
    contains(
        &cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.metadata.annotations.note}",
        ])?,
        &["hello"],
    )
}

fn rollout(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&[
        "set",
        "image",
        "deployment/web",
        &format!("main={IMAGE}:v2"),
    ])?;
    contains(
        &cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?,
        &["successfully rolled out"],
    )?;
    contains(
        &cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}",
        ])?,
        &[":v2"],
    )?;
    contains(
        &cluster.kubectl(&["rollout", "history", "deployment/web"])?,
        &["REVISION"],
    )?;
    cluster.kubectl(&["rollout", "undo", "deployment/web"])?;
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    contains(
        &cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].image}",
        ])?,
        &[":v1"],
    )?;
    cluster.kubectl(&["rollout", "restart", "deployment/web"])?;
    cluster
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .map(drop)
}

fn scale_and_wait(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=4"])?;
    cluster.kubectl(&[
        "wait",
        "deployment/web",
        "--for=jsonpath={.status.readyReplicas}=4",
        "--timeout=60s",
    ])?;
    cluster.kubectl(&["scale", "deployment", "web", "--replicas=2"])?;
    cluster.kubectl(&[
        "wait",
        "deployment/web",
        "--for=jsonpath={.status.replicas}=2",
        "--timeout=60s",
    ])?;
    eventually("two pods are left", || {
        Ok(cluster
            .kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?
            .lines()
            .count()
            == 2)
    })
}

/// A pod that is nobody's, with these words; ready when this returns.
fn pod(cluster: &Cluster, name: &str, words: &[&str], stdin: bool) -> anyhow::Result<()> {
    let object = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [{ "name": "main", "image": format!("{IMAGE}:v1"), "args": words, "stdin": stdin }] } });
    cluster.kubectl_with(&["apply", "-f", "-"], &object.to_string())?;
    cluster
        .kubectl(&[
            "wait",
            &format!("pod/{name}"),
            "--for=condition=Ready",
            "--timeout=30s",
        ])
        .map(drop)
}

fn logs(cluster: &Cluster) -> anyhow::Result<()> {
    pod(cluster, "counter", &["count", "20"], false)?;
    let mut follow = cluster.command(&["logs", "-f", "counter"])?;
    let mut child = follow.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let numbers: Vec<String> = lines.map_while(Result::ok).take(100).collect();
    child.kill()?;
    child.wait()?;
    let expected: Vec<String> = (0..100).map(|number: u32| number.to_string()).collect();
    ensure!(numbers == expected, "a follower saw {numbers:?}");
    ensure!(
        cluster
            .kubectl(&["logs", "counter", "--tail=3"])?
            .lines()
            .count()
            == 3,
        "--tail=3"
    );
    contains(
        &cluster.kubectl(&["logs", "counter", "--timestamps", "--tail=1"])?,
        &["Z "],
    )?;
    cluster
        .kubectl(&["delete", "pod", "counter", "--timeout=30s"])
        .map(drop)
}

fn exec(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    let name = name.lines().next().context("no pod")?;
    ensure!(
        cluster.kubectl(&["exec", name, "--", "/demo", "echo", "hello"])? == "hello\n",
        "exec"
    );
    let status = cluster
        .command(&["exec", name, "--", "/demo", "exit", "9"])?
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.code() == Some(9), "exec ended with {status}");
    ensure!(
        cluster.kubectl_with(&["exec", "-i", name, "--", "/demo", "lines"], "a\nb\n")?
            == "read a\nread b\n",
        "exec -i"
    );
    contains(
        &cluster.kubectl_refused(&["exec", name, "--", "/missing"])?,
        &["/missing"],
    )?;
    // A terminal: `script` makes one for kubectl.
    let kubectl = cluster.command(&[])?;
    let line = format!(
        "{} exec -it {name} -- /demo echo terminal",
        kubectl.get_program().display()
    );
    let mut script = Command::new("script");
    script
        .args(["-qec", &line, "/dev/null"])
        .env("KUBECONFIG", cluster.root().join("admin.kubeconfig"))
        .stdin(Stdio::null());
    contains(
        &String::from_utf8_lossy(&run(&mut script)?.stdout),
        &["terminal\r\n"],
    )
}

fn attach(cluster: &Cluster) -> anyhow::Result<()> {
    pod(cluster, "reader", &["lines"], true)?;
    let mut command = cluster.command(&["attach", "-i", "reader"])?;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    input.write_all(b"over the wire\n")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut line = String::new();
    output.read_line(&mut line)?;
    child.kill()?;
    child.wait()?;
    let mut rest = String::new();
    output.read_to_string(&mut rest)?;
    ensure!(line == "read over the wire\n", "attach showed {line:?}");
    contains(
        &cluster.kubectl(&["logs", "reader"])?,
        &["read over the wire"],
    )?;
    cluster
        .kubectl(&["delete", "pod", "reader", "--timeout=30s"])
        .map(drop)
}

fn events(cluster: &Cluster) -> anyhow::Result<()> {
    contains(
        &cluster.kubectl(&["get", "events"])?,
        &[
            "LAST SEEN",
            "Scheduled",
            "Started",
            "Created",
            "SuccessfulCreate",
        ],
    )?;
    contains(
        &cluster.kubectl(&["events", "--for", "deployment/web"])?,
        &["ScalingReplicaSet"],
    )
}

fn errors(cluster: &Cluster) -> anyhow::Result<()> {
    let refused = |text: &str| -> anyhow::Result<String> {
        let mut command = cluster.command(&["apply", "-f", "-"])?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no input")?
            .write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(!output.status.success(), "it was taken: {text}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let broken = manifest("broken", 1, &[]).replace("\"image\"", "\"imagee\"");
    contains(
        &refused(&broken)?,
        &["unknown field \"spec.template.spec.containers[0].imagee\""],
    )?;
    let unmatched = manifest("broken", 1, &[]).replace(
        "\"matchLabels\":{\"app\":\"broken\"}",
        "\"matchLabels\":{\"app\":\"x\"}",
    );
    contains(
        &refused(&unmatched)?,
        &[
            "The Deployment \"broken\" is invalid",
            "`selector` does not match template `labels`",
        ],
    )?;
    let named = manifest("Not_A_Name", 1, &[]);
    contains(
        &refused(&named)?,
        &["a lowercase RFC 1123 subdomain must consist of"],
    )?;
    contains(
        &cluster.kubectl_refused(&["get", "pod", "missing"])?,
        &["Error from server (NotFound): pods \"missing\" not found"],
    )?;
    contains(
        &cluster.kubectl_refused(&["get", "widgets"])?,
        &["the server doesn't have a resource type \"widgets\""],
    )?;
    contains(
        &cluster.kubectl_refused(&["create", "namespace", "default"])?,
        &["AlreadyExists"],
    )
}

fn status(cluster: &Cluster) -> anyhow::Result<()> {
    let program = crate::workspace::orlop()?;
    let text = run(Command::new(&program)
        .args(["status", "--root"])
        .arg(cluster.root()))?;
    contains(
        &String::from_utf8_lossy(&text.stdout),
        &["Ready", "web-", "10.244."],
    )?;
    let json = run(Command::new(&program)
        .args(["status", "-o", "json", "--root"])
        .arg(cluster.root()))?;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let pods = json["pods"].as_array().context("status lists no pods")?;
    ensure!(
        pods.iter().any(|pod| pod["stages"]
            .as_array()
            .is_some_and(|stages| !stages.is_empty())),
        "no pod has stages: {json}"
    );
    Ok(())
}

fn delete(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["delete", "svc", "web"])?;
    cluster.kubectl(&["delete", "deployment", "web"])?;
    cluster.kubectl(&[
        "wait",
        "pod",
        "-l",
        "app=web",
        "--for=delete",
        "--timeout=30s",
    ])?;
    eventually("nothing is left of it", || {
        let left =
            cluster.kubectl(&["get", "all,endpointslices", "-l", "app=web", "-o", "name"])?;
        Ok(left.is_empty())
    })
}
