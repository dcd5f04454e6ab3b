//! Pods with user namespaces of their own: who owns what, seen from inside and from the host.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cri_api::v1::*;
use linux::namespace::{self, NamespaceKind};
use serde_json::json;
use tonic::Code;

use crate::node::{Node, busybox_layer, image, script_config};

/// The host's id of the pods' root.
const ROOT: u32 = 200_000;

fn map(host_id: u32) -> IdMapping {
    IdMapping {
        host_id,
        container_id: 0,
        length: 65_536,
    }
}

pub fn options(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        pid: pid as i32,
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod as i32,
            uids: vec![map(ROOT)],
            gids: vec![map(ROOT)],
        }),
        ..Default::default()
    }
}

pub fn sandbox_config(node: &Node, name: &str, options: NamespaceOption) -> PodSandboxConfig {
    let mut config = node.sandbox_config(name);
    config.linux.as_mut().unwrap().security_context = Some(LinuxSandboxSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    });
    config
}

pub fn container_config(name: &str, script: &str) -> ContainerConfig {
    let mut config = script_config(name, script);
    security(&mut config).namespace_options = Some(options(NamespaceMode::Container));
    config
}

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

async fn run(
    node: &mut Node,
    sandbox: &str,
    config: &PodSandboxConfig,
    container: ContainerConfig,
) -> String {
    let id = node.create(sandbox, config, container).await.unwrap();
    node.start_container(&id).await.unwrap();
    id
}

async fn sh(node: &mut Node, id: &str, script: &str) -> String {
    node.exec_text(id, &["/bin/sh", "-c", script]).await
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_user_namespace_owns_its_others_and_outlives_the_server() {
    let mut node = Node::start().await;
    let mut config = sandbox_config(&node, "own", options(NamespaceMode::Container));
    let sysctls = [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.shm_rmid_forced", "1"),
        ("fs.mqueue.msg_max", "21"),
    ];
    config.linux.as_mut().unwrap().sysctls = sysctls
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let shown = node.sandbox_status(&sandbox).await;
    assert!(shown.network.unwrap().ip.starts_with("10.244.7."));
    let script = "echo opened > /dev/stdout; echo made > /root/made; exec sleep 1000";
    let id = run(&mut node, &sandbox, &config, container_config("a", script)).await;

    let pid = node.pid(&id).await;
    assert_eq!(owner(format!("/proc/{pid}")), (ROOT, ROOT));
    let user = namespace::open_of(pid, NamespaceKind::User).unwrap();
    for kind in ["pid", "mnt", "net", "ipc", "uts"] {
        let path = format!("/proc/{pid}/ns/{kind}");
        let owned = namespace::open(Path::new(&path)).unwrap();
        let owner = namespace::owner(owned).unwrap();
        assert!(namespace::same(&owner, &user).unwrap(), "{kind}");
    }
    let seen = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; id -u; \
         stat -c '%u %g %n' /bin/sh /root/made /etc/hosts /etc/resolv.conf /dev/shm /dev/pts/ptmx; \
         echo 10.0.0.1 other >> /etc/hosts && echo > /dev/shm/note && echo > /dev/null && hostname; \
         cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/ip_unprivileged_port_start \
         /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max; echo again > /dev/stderr; ls /dev/mqueue";
    let expected = " 0 200000 65536\n 0 200000 65536\n0\n0 0 /bin/sh\n0 0 /root/made\n0 0 /etc/hosts\n\
         0 0 /etc/resolv.conf\n0 0 /dev/shm\n0 0 /dev/pts/ptmx\nown\n1\n80\n1\n21\n";
    assert_eq!(sh(&mut node, &id, seen).await, expected);
    let upper = node
        .dir
        .path()
        .join("root/containers")
        .join(&id)
        .join("fs/root/made");
    assert_eq!(owner(upper), (ROOT, ROOT));
    let log = std::fs::read_to_string(node.status(&id).await.log_path).unwrap();
    assert!(log.contains("stdout F opened\n"), "{log}");

    node.kill_and_restart().await;
    assert_eq!(sh(&mut node, &id, "id -u; hostname").await, "0\nown\n");
    let late = run(
        &mut node,
        &sandbox,
        &config,
        container_config("late", "exec sleep 1000"),
    )
    .await;
    let joined = namespace::open_of(node.pid(&late).await, NamespaceKind::User).unwrap();
    assert!(namespace::same(&joined, &user).unwrap());
    assert_eq!(sh(&mut node, &late, "cat /dev/shm/note").await, "\n");
    node.stop_container(&id, 0).await;
    assert_eq!(node.status(&id).await.exit_code, 137);
    drop((user, joined));
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_powers_end_at_its_user_namespace() {
    let mut node = Node::start().await;
    let config = sandbox_config(&node, "powers", options(NamespaceMode::Container));
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = container_config("main", "exec sleep 1000");
    security(&mut container).privileged = true;
    container.devices = vec![Device {
        container_path: "/dev/other/zero".into(),
        host_path: "/dev/zero".into(),
        permissions: "rw".into(),
    }];
    let id = run(&mut node, &sandbox, &config, container).await;
    assert_eq!(
        sh(&mut node, &id, "head -c 4 /dev/other/zero | wc -c").await,
        "4\n"
    );
    // Over its own network, mounts and host name it has them all; over the host's it has none.
    let script = "hostname other && mkdir /m && mount -t tmpfs none /m && echo 1 > /proc/sys/net/ipv4/ip_forward && \
         grep CapEff /proc/self/status; echo 1 > /proc/sys/kernel/panic || echo no panic; mknod /tmp/null c 1 3 || echo no node";
    let output = sh(&mut node, &id, script).await;
    let lines: Vec<&str> = output.lines().collect();
    let all = u64::from_str_radix(lines[0].rsplit('\t').next().unwrap(), 16).unwrap();
    assert_ne!(all & (1 << 21), 0, "CAP_SYS_ADMIN in {output}");
    assert_eq!(lines[1..], ["no panic", "no node"]);
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_a_user_namespace_may_share_its_pid_namespace_and_have_terminals() {
    let mut node = Node::start().await;
    let config = sandbox_config(&node, "pids", options(NamespaceMode::Pod));
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let shared = |name: &str, script: &str| {
        let mut config = container_config(name, script);
        security(&mut config).namespace_options = Some(options(NamespaceMode::Pod));
        config
    };
    let one = run(
        &mut node,
        &sandbox,
        &config,
        shared("one", "exec sleep 999"),
    )
    .await;
    let pids = namespace::open_of(node.pid(&one).await, NamespaceKind::Pid).unwrap();
    let user = namespace::open_of(node.pid(&one).await, NamespaceKind::User).unwrap();
    assert!(namespace::same(namespace::owner(&pids).unwrap(), &user).unwrap());
    let mut terminal = shared("two", "tty; exec sleep 1000");
    terminal.tty = true;
    security(&mut terminal).run_as_user = Some(Int64Value { value: 33 });
    let two = run(&mut node, &sandbox, &config, terminal).await;
    let seen = "grep -l sleep /proc/[0-9]*/comm | wc -l; cat /proc/1/comm; id -u; echo > /dev/stdout; stat -c %u /dev/pts/0";
    assert_eq!(
        sh(&mut node, &two, seen).await,
        "2\norlop-pod-init\n33\n\n33\n"
    );
    let log = || std::fs::read_to_string(node.dir.path().join("logs/pids/two.log")).unwrap();
    assert!(log().contains("/dev/pts/0"), "{}", log());
    drop((pids, user));
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_mapped_as_their_mounts_say() {
    let mut node = Node::start().await;
    let files = "example.com/test/files:1";
    node.import(image(files, &[busybox_layer()], json!({})), "")
        .await
        .unwrap();
    let with_volume = "example.com/test/volume:1";
    let settings = json!({"Entrypoint": ["/bin/sh"], "Volumes": {"/var/data": {}}});
    node.import(image(with_volume, &[busybox_layer()], settings), "")
        .await
        .unwrap();
    let data = node.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for (name, owner) in [("roots", 0), ("webs", 33), ("pods", ROOT)] {
        std::fs::write(data.join(name), "").unwrap();
        std::os::unix::fs::chown(data.join(name), Some(owner), Some(owner)).unwrap();
    }
    let config = sandbox_config(&node, "volumes", options(NamespaceMode::Container));
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mount = |path: &str, mapping: &[IdMapping]| Mount {
        container_path: path.into(),
        host_path: data.display().to_string(),
        uid_mappings: mapping.to_vec(),
        gid_mappings: mapping.to_vec(),
        ..Default::default()
    };
    let narrow = IdMapping {
        container_id: 33,
        host_id: ROOT + 1000,
        length: 1,
    };
    for readonly_rootfs in [false, true] {
        let name = format!("main-{readonly_rootfs}");
        let mut container = container_config(&name, "exec sleep 1000");
        security(&mut container).readonly_rootfs = readonly_rootfs;
        container.image = Some(ImageSpec {
            image: with_volume.into(),
            ..Default::default()
        });
        let mut of_image = mount("/image", &[map(ROOT)]);
        of_image.host_path = String::new();
        of_image.readonly = true;
        of_image.image = Some(ImageSpec {
            image: files.into(),
            ..Default::default()
        });
        container.mounts = vec![
            mount("/mapped", &[map(ROOT)]),
            mount("/plain", &[]),
            mount("/narrow", &[narrow]),
            of_image,
        ];
        let id = run(&mut node, &sandbox, &config, container).await;
        let seen = "stat -c '%u %n' /mapped/* /plain/* /narrow/webs /image/bin/sh /var /var/data; \
             echo > /mapped/new && chown 7 /mapped/new && echo > /var/data/new; id -u";
        let expected = "65534 /mapped/pods\n0 /mapped/roots\n33 /mapped/webs\n0 /plain/pods\n65534 /plain/roots\n\
             65534 /plain/webs\n1000 /narrow/webs\n0 /image/bin/sh\n0 /var\n0 /var/data\n0\n";
        assert_eq!(sh(&mut node, &id, seen).await, expected);
        assert_eq!(owner(data.join("new")), (7, 0));
        std::fs::remove_file(data.join("new")).unwrap();
    }
    // What can't be mapped is said, and which.
    let mut procfs = mount("/host-proc", &[map(ROOT)]);
    procfs.host_path = "/proc".into();
    let mut container = container_config("unmappable", "exec sleep 1000");
    container.mounts = vec![procfs];
    let id = node.create(&sandbox, &config, container).await.unwrap();
    let error = node.start_container(&id).await.unwrap_err();
    assert!(
        error.message().contains("/host-proc can't map ids"),
        "{error}"
    );
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_of_a_user_namespace_is_refused_by_field() {
    let mut node = Node::start().await;
    let handlers = node
        .runtime
        .status(StatusRequest::default())
        .await
        .unwrap()
        .into_inner()
        .runtime_handlers;
    let features = handlers[0].features.unwrap();
    assert!(features.user_namespaces && features.recursive_read_only_mounts);

    let good = options(NamespaceMode::Container);
    let user = |change: fn(&mut UserNamespace)| {
        let mut options = good.clone();
        change(options.userns_options.as_mut().unwrap());
        options
    };
    let host = NamespaceMode::Node as i32;
    let refused = [
        (".uids", user(|user| user.uids.clear())),
        (".gids", user(|user| user.gids.clear())),
        (".uids", user(|user| user.uids.push(map(400_000)))),
        (".gids", user(|user| user.gids[0].host_id += 1)),
        (".uids", user(|user| user.uids[0].length = 0)),
        (
            ".mode",
            user(|user| user.mode = NamespaceMode::Container as i32),
        ),
        (
            ".mode",
            user(|user| user.mode = NamespaceMode::Target as i32),
        ),
        ("", user(|user| user.mode = NamespaceMode::Node as i32)),
    ]
    .map(|(field, options)| (format!("userns_options{field}"), options))
    .into_iter()
    .chain([
        (
            "network".to_owned(),
            NamespaceOption {
                network: host,
                ..good.clone()
            },
        ),
        (
            "pid".to_owned(),
            NamespaceOption {
                pid: host,
                ..good.clone()
            },
        ),
        (
            "ipc".to_owned(),
            NamespaceOption {
                ipc: host,
                ..good.clone()
            },
        ),
    ]);
    for (field, options) in refused {
        let config = sandbox_config(&node, "refused", options);
        let error = node.run_sandbox(&config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        let named = format!("linux.security_context.namespace_options.{field}: ");
        assert!(error.message().starts_with(&named), "{field}: {error}");
    }

    let config = sandbox_config(&node, "own", good.clone());
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let differing = [
        user(|user| {
            user.uids[0].host_id += 65_536;
            user.gids[0].host_id += 65_536;
        }),
        NamespaceOption::default(),
        NamespaceOption { pid: host, ..good },
    ];
    for options in differing {
        let mut container = container_config("main", "exec sleep 1000");
        security(&mut container).namespace_options = Some(options);
        let error = node.create(&sandbox, &config, container).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    let mut container = container_config("half", "exec sleep 1000");
    container.mounts = vec![Mount {
        container_path: "/data".into(),
        host_path: "/tmp".into(),
        uid_mappings: vec![map(ROOT)],
        ..Default::default()
    }];
    let error = node.create(&sandbox, &config, container).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("mounts[/data]"), "{error}");
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}
