//! Pods from their start to their end.

use std::time::{Duration, Instant};

use cri_api::v1::*;
use tonic::Code;

use crate::node::{Node, script_config};

/// A busybox applet, through the shell that the image's one program is.
fn applet<'a>(words: &[&'a str]) -> Vec<&'a str> {
    [&["/bin/sh", "-c", "exec \"$0\" \"$@\""], words].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_with_network_logs_and_exec_and_leaves_nothing() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("web");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let status = node.sandbox_status(&sandbox).await;
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert!(status.network.unwrap().ip.starts_with("10.244.7."));

    let script = "echo out; echo err >&2; echo $FROM_IMAGE; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done";
    let id = node.run(&sandbox, &config, "main", script).await;
    let running = node.status(&id).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at);
    assert_eq!(running.image.unwrap().image, crate::node::IMAGE);

    assert_eq!(node.exec_text(&id, &applet(&["hostname"])).await, "web\n");
    assert_eq!(
        node.exec_text(&id, &applet(&["cat", "/etc/hostname"]))
            .await,
        "web\n"
    );
    assert_eq!(
        node.exec_text(&id, &applet(&["cat", "/etc/resolv.conf"]))
            .await,
        "nameserver 10.96.0.10\n"
    );
    let failing = node
        .exec(&id, &["/bin/sh", "-c", "echo no >&2; exit 7"], 10)
        .await
        .unwrap();
    assert_eq!(
        (failing.exit_code, failing.stderr.as_slice()),
        (7, &b"no\n"[..])
    );
    let missing = node.exec(&id, &["/nonexistent"], 10).await.unwrap_err();
    assert!(missing.message().contains("/nonexistent"), "{missing}");

    let stats = node
        .runtime
        .container_stats(ContainerStatsRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    assert!(
        stats
            .into_inner()
            .stats
            .unwrap()
            .memory
            .unwrap()
            .usage_bytes
            .unwrap()
            .value
            > 0
    );

    node.stop_container(&id, 10).await;
    let ended = node.status(&id).await;
    assert_eq!(
        (ended.state(), ended.exit_code, ended.reason.as_str()),
        (ContainerState::ContainerExited, 3, "Error")
    );
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    for entry in [
        "stdout F out\n",
        "stderr F err\n",
        "stdout F yes\n",
        "stdout F bye\n",
    ] {
        assert!(log.contains(entry), "{entry:?} in {log}");
    }
    node.remove_container(&id).await;
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_containers_of_a_pod_share_network_ipc_and_memory() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("shared");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let one = node
        .run(
            &sandbox,
            &config,
            "one",
            "echo hello > /dev/shm/note; exec sleep 1000",
        )
        .await;
    let two = node.run(&sandbox, &config, "two", "exec sleep 1000").await;
    assert_eq!(
        node.exec_text(&two, &applet(&["cat", "/dev/shm/note"]))
            .await,
        "hello\n"
    );
    let namespace =
        |pid: i32, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let (first, second) = (node.pid(&one).await, node.pid(&two).await);
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(first, kind), namespace(second, kind), "{kind}");
        assert_ne!(
            namespace(first, kind),
            std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap(),
            "{kind}"
        );
    }
    for kind in ["pid", "mnt"] {
        assert_ne!(namespace(first, kind), namespace(second, kind), "{kind}");
    }
    // The other's end ends nothing of the pod.
    node.stop_container(&one, 0).await;
    assert_eq!(node.status(&one).await.exit_code, 137);
    assert_eq!(
        node.exec_text(&two, &applet(&["cat", "/dev/shm/note"]))
            .await,
        "hello\n"
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_may_share_a_pid_namespace() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("pids");
    let options = NamespaceOption {
        pid: NamespaceMode::Pod as i32,
        ..Default::default()
    };
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options.clone()),
        ..Default::default()
    });
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = script_config("one", "exec sleep 1000");
    container
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .namespace_options = Some(options);
    let mut other = container.clone();
    other.metadata.as_mut().unwrap().name = "two".into();
    for config_of in [container, other] {
        let id = node.create(&sandbox, &config, config_of).await.unwrap();
        node.start_container(&id).await.unwrap();
    }
    let containers = node
        .runtime
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap()
        .into_inner();
    let seen = node
        .exec_text(
            &containers.containers[0].id,
            &["/bin/sh", "-c", "cat /proc/*/comm"],
        )
        .await;
    assert_eq!(
        seen.lines().filter(|name| *name == "sleep").count(),
        2,
        "{seen}"
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_the_same_request() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("twice");
    let mut other = node.runtime.clone();
    let request = RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: String::new(),
    };
    let (one, two) = tokio::join!(
        node.runtime.run_pod_sandbox(request.clone()),
        other.run_pod_sandbox(request.clone())
    );
    let sandbox = one.unwrap().into_inner().pod_sandbox_id;
    assert_eq!(sandbox, two.unwrap().into_inner().pod_sandbox_id);
    assert_eq!(sandbox, node.run_sandbox(&config).await.unwrap());
    let container = script_config("main", "exec sleep 1000");
    let id = node
        .create(&sandbox, &config, container.clone())
        .await
        .unwrap();
    assert_eq!(id, node.create(&sandbox, &config, container).await.unwrap());
    node.start_container(&id).await.unwrap();
    let again = node.start_container(&id).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
    node.remove_sandbox(&sandbox).await;
    // What is gone is stopped and removed, and nobody can ask about it.
    node.remove_sandbox(&sandbox).await;
    node.stop_container(&id, 1).await;
    node.remove_container(&id).await;
    let request = ContainerStatusRequest {
        container_id: id,
        verbose: false,
    };
    assert_eq!(
        node.runtime
            .container_status(request)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("broken");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = script_config("nowhere", "");
    container.command = vec!["/nowhere".into()];
    let id = node.create(&sandbox, &config, container).await.unwrap();
    let error = node.start_container(&id).await.unwrap_err();
    assert!(error.message().contains("/nowhere"), "{error}");
    let status = node.status(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );

    let mut unknown = script_config("unknown", "");
    unknown.image = Some(ImageSpec {
        image: "nosuch".into(),
        ..Default::default()
    });
    assert_eq!(
        node.create(&sandbox, &config, unknown)
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    let mut nobody = script_config("nobody", "");
    let security = nobody
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    security.run_as_username = "nobody".into();
    assert!(
        node.create(&sandbox, &config, nobody)
            .await
            .unwrap_err()
            .message()
            .contains("nobody")
    );
    node.remove_sandbox(&sandbox).await;

    // The plugin fails: no sandbox comes to be.
    let conflist = node.dir.path().join("cni/10-test.conflist");
    let good = std::fs::read_to_string(&conflist).unwrap();
    std::fs::write(&conflist, good.replace("10.244.7.0/24", "10.244.7.0/33")).unwrap();
    let config = node.sandbox_config("offline");
    assert!(node.run_sandbox(&config).await.is_err());
    let list = node
        .runtime
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap()
        .into_inner();
    std::fs::write(&conflist, good).unwrap();
    for left in list.items {
        node.remove_sandbox(&left.id).await;
    }
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_that_takes_too_long_dies_whole() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("slow");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let id = node.run(&sandbox, &config, "main", "exec sleep 1000").await;
    let begun = Instant::now();
    let slow = node
        .exec(&id, &["/bin/sh", "-c", "sleep 777 & sleep 777"], 1)
        .await
        .unwrap_err();
    assert_eq!(slow.code(), Code::DeadlineExceeded, "{slow}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let deadline = Instant::now() + Duration::from_secs(5);
    while node
        .exec_text(&id, &["/bin/sh", "-c", "cat /proc/*/cmdline"])
        .await
        .contains("sleep\x00777")
    {
        assert!(Instant::now() < deadline, "the command's child goes on");
    }
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_is_who_the_request_says_and_no_more() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("who");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = script_config("who", "exec sleep 1000");
    let security = container
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    security.run_as_user = Some(Int64Value { value: 33 });
    security.supplemental_groups = vec![70];
    security.no_new_privs = true;
    security.readonly_rootfs = true;
    let host = node.dir.path().join("volume/new");
    container.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: host.display().to_string(),
        ..Default::default()
    }];
    let id = node.create(&sandbox, &config, container).await.unwrap();
    node.start_container(&id).await.unwrap();
    assert!(host.is_dir(), "a missing host path is made");
    let status = node
        .exec_text(&id, &applet(&["cat", "/proc/1/status"]))
        .await;
    let line = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert_eq!(line("Uid:"), "Uid:\t33\t33\t33\t33");
    assert_eq!(line("Gid:"), "Gid:\t34\t34\t34\t34");
    assert_eq!(line("Groups:").trim_end(), "Groups:\t34 50 70");
    assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
    assert_eq!(line("Seccomp:"), "Seccomp:\t2");
    assert_eq!(line("CapEff:"), "CapEff:\t0000000000000000");
    let write = node
        .exec(&id, &["/bin/sh", "-c", "echo > /etc/x"], 10)
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&write.stderr).contains("Read-only"),
        "{write:?}"
    );
    let shown = node.status(&id).await.user.unwrap().linux.unwrap();
    assert_eq!(
        (shown.uid, shown.gid, shown.supplemental_groups),
        (33, 34, vec![34, 50, 70])
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_of_each_change_and_a_reader_resumes() {
    let mut node = Node::start().await;
    let mut events = node
        .runtime
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let config = node.sandbox_config("events");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let id = node.run(&sandbox, &config, "main", "exit 5").await;
    let mut seen = Vec::new();
    while seen.len() < 5 {
        let event = tokio::time::timeout(crate::node::PATIENCE, events.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        seen.push(event);
    }
    use ContainerEventType as Type;
    let kinds: Vec<_> = seen
        .iter()
        .map(|event| (event.container_id.as_str(), event.container_event_type()))
        .collect();
    let expected = [
        (sandbox.as_str(), Type::ContainerCreatedEvent),
        (sandbox.as_str(), Type::ContainerStartedEvent),
        (id.as_str(), Type::ContainerCreatedEvent),
        (id.as_str(), Type::ContainerStartedEvent),
        (id.as_str(), Type::ContainerStoppedEvent),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(seen[4].containers_statuses[0].exit_code, 5);
    assert!(
        seen.windows(2)
            .all(|pair| pair[0].created_at < pair[1].created_at)
    );
    let mut since = tonic::Request::new(GetEventsRequest {});
    since.metadata_mut().insert(
        "orlop-events-since",
        seen[3].created_at.to_string().parse().unwrap(),
    );
    let mut resumed = node
        .runtime
        .get_container_events(since)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(resumed.message().await.unwrap().unwrap(), seen[4]);
    drop((events, resumed));
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_over_its_memory_limit_is_killed_and_says_so() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("greedy");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = script_config(
        "main",
        "sleep 0.1; x=0123456789abcdef; while :; do x=$x$x; done",
    );
    let resources = container
        .linux
        .as_mut()
        .unwrap()
        .resources
        .as_mut()
        .unwrap();
    resources.memory_limit_in_bytes = 16 << 20;
    resources.memory_swap_limit_in_bytes = 16 << 20;
    resources.hugepage_limits = kubelets_huge_pages();
    let id = node.create(&sandbox, &config, container).await.unwrap();
    node.start_container(&id).await.unwrap();
    let status = node.wait_for_exit(&id).await;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

/// What a kubelet sends to every container, whether or not the kernel has the controller.
fn kubelets_huge_pages() -> Vec<HugepageLimit> {
    let sizes = ["1GB", "2MB"];
    let limits = sizes.map(|size| HugepageLimit {
        page_size: size.to_owned(),
        limit: 0,
    });
    limits.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_changed_while_a_container_runs() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("growing");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let id = node.run(&sandbox, &config, "main", "exec sleep 1000").await;
    let linux = LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        hugepage_limits: kubelets_huge_pages(),
        ..Default::default()
    };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    node.runtime
        .update_container_resources(request)
        .await
        .unwrap();
    let shown = node.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(
        (
            shown.memory_limit_in_bytes,
            shown.cpu_quota,
            shown.cpu_shares
        ),
        (32 << 20, 50_000, 512)
    );
    let stats = node
        .runtime
        .container_stats(ContainerStatsRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    let memory = stats.into_inner().stats.unwrap().memory.unwrap();
    assert_eq!(
        memory.available_bytes.unwrap().value + memory.working_set_bytes.unwrap().value,
        32 << 20
    );
    node.kill_and_restart().await;
    assert_eq!(
        node.status(&id)
            .await
            .resources
            .unwrap()
            .linux
            .unwrap()
            .memory_limit_in_bytes,
        32 << 20
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_the_hosts_namespaces_is_in_them() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("host");
    let mode = NamespaceMode::Node as i32;
    let options = NamespaceOption {
        network: mode,
        pid: mode,
        ipc: mode,
        ..Default::default()
    };
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options.clone()),
        ..Default::default()
    });
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = script_config("main", "exec sleep 1000");
    container
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .namespace_options = Some(options);
    let id = node.create(&sandbox, &config, container).await.unwrap();
    node.start_container(&id).await.unwrap();
    let pid = node.pid(&id).await;
    let namespace =
        |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["pid", "ipc", "uts"] {
        assert_eq!(
            namespace(&pid.to_string(), kind),
            namespace("self", kind),
            "{kind}"
        );
    }
    let host = crate::node::in_network(node.dir.path(), || {
        std::fs::read_link("/proc/thread-self/ns/net").unwrap()
    });
    assert_eq!(namespace(&pid.to_string(), "net"), host);
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_mounted_and_kept_while_it_is() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("volumes");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mount = |path: &str, part: &str, readonly: bool| Mount {
        container_path: path.into(),
        readonly,
        image: Some(ImageSpec {
            image: crate::node::IMAGE.into(),
            ..Default::default()
        }),
        image_sub_path: part.into(),
        ..Default::default()
    };
    let with = |name: &str, mounts: Vec<Mount>| ContainerConfig {
        mounts,
        ..script_config(name, "exec sleep 1000")
    };
    let wanted = vec![mount("/all", "", true), mount("/part", "etc", true)];
    let id = node
        .create(&sandbox, &config, with("main", wanted))
        .await
        .unwrap();
    node.start_container(&id).await.unwrap();
    assert!(
        node.exec_text(&id, &applet(&["cat", "/all/etc/passwd", "/part/group"]))
            .await
            .contains("logs:x:50:web")
    );
    let write = node
        .exec(&id, &["/bin/sh", "-c", "echo > /all/x"], 10)
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&write.stderr).contains("Read-only"),
        "{write:?}"
    );
    assert_eq!(
        node.exec_text(&id, &["/all/bin/sh", "-c", "echo runs"])
            .await,
        "runs\n"
    );
    let status = node.status(&id).await;
    assert_eq!(
        status.mounts[0].image.as_ref().unwrap().image_ref,
        status.image_id
    );
    for (name, wrong) in [
        ("a", mount("/all", "nosuch", true)),
        ("b", mount("/all", "", false)),
    ] {
        node.create(&sandbox, &config, with(name, vec![wrong]))
            .await
            .unwrap_err();
    }
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_that_is_described_is_told_with_its_labels() {
    let mut node = Node::start().await;
    let config = node.sandbox_config("metrics");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    node.run(&sandbox, &config, "main", "exec sleep 1000").await;
    let described = node
        .runtime
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await
        .unwrap()
        .into_inner();
    let told = node
        .runtime
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await
        .unwrap()
        .into_inner();
    let pod = told
        .pod_metrics
        .iter()
        .find(|pod| pod.pod_sandbox_id == sandbox)
        .unwrap();
    let metrics = || pod.metrics.iter().chain(&pod.container_metrics[0].metrics);
    // A host's block devices may not be counted.
    let optional =
        |name: &str| name.contains("blkio") || name.contains("reads") || name.contains("writes");
    for descriptor in &described.descriptors {
        match metrics().find(|metric| metric.name == descriptor.name) {
            Some(metric) => assert_eq!(
                metric.label_values.len(),
                descriptor.label_keys.len(),
                "{}",
                descriptor.name
            ),
            None => assert!(optional(&descriptor.name), "{}", descriptor.name),
        }
    }
    let value = |name: &str| {
        metrics()
            .find(|metric| metric.name == name)
            .unwrap()
            .value
            .unwrap()
            .value
    };
    assert_eq!(value("container_processes"), 1);
    assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
    assert!(value("container_memory_usage_bytes") > 0);
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}
