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
