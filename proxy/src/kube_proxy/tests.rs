use super::*;
use clap::Parser;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

fn loaded(arguments: &[&str]) -> Result<Loaded, Error> {
    let arguments = std::iter::once("proxy").chain(arguments.iter().copied());
    Command::try_parse_from(arguments)
        .expect("flags")
        .flags
        .load("host")
}

/// As kubeadm writes it.
const FILE: &str = "
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: 0
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: 0s
  udpStreamTimeout: 0s
  udpTimeout: 5m0s
detectLocal:
  bridgeInterface: \"\"
  interfaceNamePrefix: \"\"
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: \"0\"
  verbosity: 0
metricsBindAddress: \"\"
mode: nftables
nftables:
  masqueradeAll: true
  masqueradeBit: 15
  minSyncPeriod: 1s
  syncPeriod: 30s
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel:
  enableDSR: false
";

#[test]
fn a_file_of_kubeadms_is_read() {
    let loaded = KubeProxyConfiguration::parse(FILE)
        .and_then(|file| file.load("host"))
        .expect("a configuration");
    let config = loaded.config;
    assert_eq!(config.node_name, "host");
    let networks = ["10.244.0.0/16", "fd00:10:244::/56"].map(|text| text.parse().expect("network"));
    assert_eq!(
        config.detect_local,
        DetectLocal::Networks(networks.to_vec())
    );
    assert!(config.masquerade_all);
    assert_eq!(
        (config.masquerade_bit, config.min_sync_period),
        (15, Duration::from_secs(1))
    );
    assert_eq!(config.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(config.healthz_address, Some(([0, 0, 0, 0], 10256).into()));
    assert_eq!(config.metrics_address, Some(([127, 0, 0, 1], 10249).into()));
    let conntrack = config.conntrack.expect("settings");
    assert_eq!((conntrack.max_per_core, conntrack.min), (32_768, 0));
    assert_eq!(conntrack.tcp_established, None, "zero leaves the kernel's");
    assert_eq!(conntrack.tcp_close_wait, Some(Duration::from_secs(3_600)));
    assert_eq!(conntrack.udp, Some(Duration::from_secs(300)));
    assert_eq!(
        loaded.kubeconfig,
        Some(PathBuf::from("/var/lib/kube-proxy/kubeconfig.conf"))
    );
}

#[test]
fn flags_say_the_same_as_a_file() {
    let loaded = loaded(&[
        "--kubeconfig=/k",
        "--hostname-override=n1",
        "--cluster-cidr=10.244.0.0/16",
        "--proxy-mode=nftables",
        "--nodeport-addresses=192.0.2.0/24,2001:db8::/64",
        "--healthz-bind-address=0.0.0.0:0",
        "--metrics-bind-address=[::1]:9000",
        "--v=2",
        "--iptables-sync-period=30s",
        "--oom-score-adj=-999",
    ])
    .expect("a configuration");
    assert_eq!(loaded.config.node_name, "n1");
    assert!(
        matches!(loaded.config.node_port_addresses, NodePortAddresses::Networks(networks) if networks.len() == 2)
    );
    assert_eq!(loaded.config.healthz_address, None);
    assert_eq!(
        loaded.config.metrics_address,
        Some("[::1]:9000".parse().expect("address"))
    );
    assert_eq!(loaded.kubeconfig, Some("/k".into()));
}

#[test]
fn what_cannot_be_used_is_named() {
    let problem = |arguments: &[&str]| loaded(arguments).expect_err("it can't be used").to_string();
    assert!(problem(&["--proxy-mode=userspace"]).contains("use nftables"));
    assert!(problem(&["--proxy-mode=ebpf"]).starts_with("mode: \"ebpf\" is unknown"));
    assert!(problem(&["--detect-local-mode=Guess"]).starts_with("detectLocalMode: \"Guess\""));
    assert!(
        problem(&["--cluster-cidr=10.0.0.0"])
            .starts_with("clusterCIDR: \"10.0.0.0\" is no network")
    );
    assert!(problem(&["--iptables-min-sync-period=soon"]).contains("\"soon\" is no duration"));
    assert!(problem(&["--config=/nowhere/at/all"]).starts_with("read /nowhere/at/all: "));
    let other = KubeProxyConfiguration::parse("apiVersion: v1\nkind: Pod")
        .expect_err("another kind")
        .to_string();
    assert!(other.contains("\"Pod\""), "{other}");
}

#[test]
fn switches_take_gos_words() {
    let masquerades = |arguments: &[&str]| {
        let loaded = loaded(arguments).expect("a configuration");
        loaded.config.masquerade_all
    };
    assert!(masquerades(&["--masquerade-all"]));
    assert!(masquerades(&["--masquerade-all=true"]));
    assert!(masquerades(&["--masquerade-all=1"]));
    assert!(!masquerades(&["--masquerade-all=false"]));
    assert!(!masquerades(&[]));
    let words = ["proxy", "--masquerade-all=perhaps"];
    assert!(Command::try_parse_from(words).is_err());
}

/// By `kube-proxy --help` of 1.36, with `--help` left out.
#[test]
fn all_flags_of_kube_proxy_are_known() {
    let switches = [
        "bind-address-hard-fail",
        "cleanup",
        "conntrack-tcp-be-liberal",
        "init-only",
        "iptables-localhost-nodeports",
        "ipvs-strict-arp",
        "log-json-split-stream",
        "log-text-split-stream",
        "masquerade-all",
        "profiling",
        "version",
    ];
    let values = "bind-address=::1 cluster-cidr=10.0.0.0/8 config=/c config-sync-period=15m0s conntrack-max-per-core=1 \
         conntrack-min=1 conntrack-tcp-timeout-close-wait=1h conntrack-tcp-timeout-established=24h \
         conntrack-udp-timeout=1s conntrack-udp-timeout-stream=1s detect-local-mode=NodeCIDR feature-gates=A=true \
         healthz-bind-address=0.0.0.0:1 healthz-port=1 hostname-override=n iptables-masquerade-bit=14 \
         iptables-min-sync-period=1s iptables-sync-period=30s ipvs-exclude-cidrs=10.0.0.0/8 ipvs-min-sync-period=1s \
         ipvs-scheduler=rr ipvs-sync-period=30s ipvs-tcp-timeout=1s ipvs-tcpfin-timeout=1s ipvs-udp-timeout=1s \
         kube-api-burst=10 kube-api-content-type=application/json kube-api-qps=5 kubeconfig=/k log-flush-frequency=5s \
         log-json-info-buffer-size=0 log-text-info-buffer-size=0 logging-format=json master=https://a \
         metrics-bind-address=0.0.0.0:1 metrics-port=1 nodeport-addresses=10.0.0.0/8 oom-score-adj=-999 \
         pod-bridge-interface=b pod-interface-name-prefix=p proxy-mode=nftables \
         show-hidden-metrics-for-version=1.35 v=2 vmodule=a=1 write-config-to=/w";
    let bare = switches.map(|name| format!("--{name}"));
    let worded = switches.map(|name| format!("--{name}=true"));
    let with_equals = values.split_whitespace().map(|pair| format!("--{pair}"));
    let apart = values.split_whitespace().flat_map(|pair| {
        let (name, value) = pair.split_once('=').expect("a pair");
        [format!("--{name}"), value.to_owned()]
    });
    let once = std::iter::once("proxy".to_owned());
    Command::try_parse_from(once.clone().chain(bare).chain(with_equals)).expect("known flags");
    Command::try_parse_from(once.chain(worded).chain(apart)).expect("known flags");
}

#[test]
fn an_empty_mode_has_the_settings_and_defaults_of_iptables() {
    let file = FILE.replace("mode: nftables", "mode: \"\"");
    let iptables = "iptables:\n  localhostNodePorts: null\n  masqueradeAll: true\n  masqueradeBit: 17\n  minSyncPeriod: 2s";
    let file = file.replace(
        "iptables:\n  localhostNodePorts: null\n  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s",
        iptables,
    );
    let load = |file: &str| KubeProxyConfiguration::parse(file).and_then(|file| file.load("host"));
    let config = load(&file).expect("a configuration").config;
    assert!(config.masquerade_all);
    assert_eq!(
        (config.masquerade_bit, config.min_sync_period),
        (17, Duration::from_secs(2))
    );
    assert_eq!(config.node_port_addresses, NodePortAddresses::All);
    let wrong = load(&file.replace("masqueradeBit: 17", "masqueradeBit: 32"));
    let problem = wrong.expect_err("a bit too many").to_string();
    assert!(problem.starts_with("iptables.masqueradeBit: "), "{problem}");
}

#[test]
fn an_interface_of_local_pods_has_to_be_named() {
    let detect = |arguments: &[&str]| loaded(arguments).map(|loaded| loaded.config.detect_local);
    for mode in ["BridgeInterface", "InterfaceNamePrefix"] {
        let problem = detect(&[&format!("--detect-local-mode={mode}")]).expect_err("no name");
        assert!(problem.to_string().starts_with("detectLocal."), "{problem}");
    }
    let prefix = detect(&[
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=veth",
    ]);
    assert_eq!(
        prefix.expect("a prefix"),
        DetectLocal::Interface("veth*".into())
    );
    let star = detect(&[
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=*",
    ]);
    assert!(star.is_err());
}

#[test]
fn ports_of_old_and_the_bind_address_say_where_it_answers() {
    let addresses = |arguments: &[&str]| {
        let config = loaded(arguments).expect("a configuration").config;
        (config.healthz_address, config.metrics_address)
    };
    let at = |text: &str| Some(text.parse::<SocketAddr>().expect("address"));
    assert_eq!(
        addresses(&["--healthz-port=0", "--metrics-port=9"]),
        (None, at("127.0.0.1:9"))
    );
    assert_eq!(
        addresses(&["--bind-address=::"]),
        (at("[::]:10256"), at("[::1]:10249"))
    );
    assert!(loaded(&["--bind-address=here"]).is_err());
}

#[test]
fn the_written_file_comes_to_what_the_flags_do() {
    let arguments = [
        "--masquerade-all",
        "--cluster-cidr=10.0.0.0/8",
        "--kubeconfig=/k",
        "--conntrack-min=7",
        "--nodeport-addresses=192.0.2.0/24",
        "--hostname-override= Node-1 ",
    ];
    let words = std::iter::once("proxy").chain(arguments);
    let flags = Command::try_parse_from(words).expect("flags").flags;
    let text = flags.file().and_then(|file| file.text()).expect("text");
    let read = KubeProxyConfiguration::parse(&text).and_then(|file| file.load("host"));
    let (read, direct) = (
        read.expect("it is read"),
        loaded(&arguments).expect("flags"),
    );
    assert_eq!(read.kubeconfig, direct.kubeconfig);
    assert_eq!(read.config.node_name, "node-1");
    assert_eq!(read.config.masquerade_all, direct.config.masquerade_all);
    assert_eq!(read.config.conntrack, direct.config.conntrack);
    assert_eq!(read.config.detect_local, direct.config.detect_local);
    assert_eq!(
        read.config.node_port_addresses,
        direct.config.node_port_addresses
    );
}

#[test]
fn durations_are_gos() {
    assert_eq!(
        parse_duration("1h2m3.5s"),
        Some(Duration::from_millis(3_723_500))
    );
    assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
    assert_eq!(parse_duration("0"), Some(Duration::ZERO));
    assert_eq!(
        (parse_duration(""), parse_duration("5"), parse_duration("s")),
        (None, None, None)
    );
}

#[test]
fn mode_iptables_has_upstreams_settings_and_defaults() {
    let config = |arguments: &[&str]| loaded(arguments).expect("a configuration").config;
    let plain = config(&["--proxy-mode=iptables"]);
    assert_eq!(plain.mode, Mode::Iptables(IptablesSettings::default()));
    assert_eq!(plain.min_sync_period, Duration::from_secs(1));
    assert_eq!(plain.node_port_addresses, NodePortAddresses::All);
    let told = config(&[
        "--proxy-mode=iptables",
        "--iptables-sync-period=5s",
        "--iptables-min-sync-period=0s",
        "--iptables-localhost-nodeports=false",
        "--iptables-masquerade-bit=15",
    ]);
    let own = IptablesSettings {
        sync_period: Duration::from_secs(5),
        localhost_node_ports: false,
    };
    assert_eq!(told.mode, Mode::Iptables(own));
    assert_eq!(
        (told.min_sync_period, told.masquerade_bit),
        (Duration::ZERO, 15)
    );
    let file = FILE
        .replace("mode: nftables", "mode: iptables")
        .replace("localhostNodePorts: null", "localhostNodePorts: false");
    let file = KubeProxyConfiguration::parse(&file).and_then(|file| file.load("host"));
    let file = file.expect("a configuration").config;
    let own = IptablesSettings {
        localhost_node_ports: false,
        ..IptablesSettings::default()
    };
    assert_eq!(file.mode, Mode::Iptables(own));
    assert_eq!(
        file.min_sync_period,
        Duration::from_secs(1),
        "a file's zero is upstream's default"
    );
    let networks = "--cluster-cidr=10.0.0.0/16,10.1.0.0/16,fd00::/48";
    let problem = loaded(&["--proxy-mode=iptables", networks]).expect_err("two of one family");
    assert!(
        problem
            .to_string()
            .starts_with("clusterCIDR: mode iptables takes one"),
        "{problem}"
    );
    assert!(loaded(&["--proxy-mode=nftables", networks]).is_ok());
    let problem = loaded(&["--proxy-mode=ipvs"])
        .expect_err("not there")
        .to_string();
    assert!(problem.starts_with("mode: ipvs is not there"), "{problem}");
}
