//! In a virtual machine with cgroup v2: the demo, and that limits limit.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use crate::setup;
use crate::tally::Outcome;
use crate::vm::Machine;

/// Without KVM a guest runs some ten times slower than the host.
const TIMEOUT: Duration = Duration::from_secs(600);

/// `orlop up --demo --exit`, as on the host.
pub fn demo(program: &Path) -> anyhow::Result<Outcome> {
    let mut proved = 0;
    let machine = Machine::new().with_program("orlop", program);
    let code = machine.run(
        &["env", "NO_COLOR=1", "orlop", "up", "--demo", "--exit"],
        TIMEOUT,
        |line| {
            println!("     | {line}");
            proved += usize::from(line.trim_start().starts_with("ok "));
        },
    )?;
    ensure!(code == 0, "the demo ended with {code}");
    ensure!(proved >= 11, "only {proved} claims were proved");
    Ok(Outcome::Passed)
}

/// Runs in the guest: a pod over its memory limit is killed and says so, a CPU limit throttles, and at the end of the
/// cluster nothing is left. Each claim prints a line that starts with "held".
const LIMITS: &str = r#"
set -e
fail() { echo "FAILED: $1"; cat /tmp/up.log; exit 1; }
before() { ls /run/netns 2>/dev/null || true; ls /sys/class/net; find /sys/fs/cgroup -type d; cut -d' ' -f5 /proc/self/mountinfo; }
before | sort > /tmp/before
orlop up > /tmp/up.log 2>&1 &
up=$!
until grep -q '^ready' /tmp/up.log; do kill -0 $up || fail "up ended"; sleep 0.2; done
export KUBECONFIG=/var/lib/orlop/admin.kubeconfig
orlop image demo
pod() { cat <<EOF
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"$1"},"spec":{"restartPolicy":"Never","terminationGracePeriodSeconds":0,
"containers":[{"name":"main","image":"orlop.local/demo:v1","args":$2,"resources":{"limits":$3}}]}}
EOF
}
pod eater '["eat","64"]' '{"memory":"24Mi"}' | kubectl apply -f -
pod spinner '["spin"]' '{"cpu":"100m"}' | kubectl apply -f -
kubectl wait pod/eater --for='jsonpath={.status.containerStatuses[0].state.terminated.reason}'=OOMKilled --timeout=120s || fail "not OOM-killed: $(kubectl get pod eater -o yaml)"
echo "held: a pod over its memory limit is OOM-killed and says so"
kubectl wait pod/spinner --for=condition=Ready --timeout=120s
sleep 3
uid=$(kubectl get pod spinner -o 'jsonpath={.metadata.uid}')
group=$(find /sys/fs/cgroup -type d -name "pod$uid" | head -n 1)
[ -n "$group" ] || fail "the pod has no cgroup: $(find /sys/fs/cgroup -type d)"
throttled=$(cat "$group"/*/cpu.stat | grep '^nr_throttled' | head -n 1 | cut -d' ' -f2)
[ "$throttled" -gt 5 ] || fail "throttled $throttled times"
echo "held: a CPU limit throttles ($throttled times in 3 s)"
echo "held: $(cat "$group"/*/cpu.max) is its cpu.max"
kill -INT $up
wait $up || fail "up ended with $?"
before | sort > /tmp/after
diff /tmp/before /tmp/after || fail "something is left"
echo "held: nothing is left"
"#;

/// Limits are what the kernel enforces, and a stopped cluster leaves nothing.
pub fn limits(program: &Path) -> anyhow::Result<Outcome> {
    let mut held = 0;
    let machine = Machine::new()
        .with_program("orlop", program)
        .with_program("kubectl", &setup::kubectl()?);
    let code = machine.run(&["sh", "-c", LIMITS], TIMEOUT, |line| {
        println!("     | {line}");
        held += usize::from(line.starts_with("held"));
    })?;
    ensure!(code == 0, "the guest's script ended with {code}");
    ensure!(held == 4, "only {held} of 4 claims held");
    Ok(Outcome::Passed)
}
