# Runs in the guest, as a service of systemd's: what a user does with a runtime, and what systemd then says. runc is
# asked the same first.
fail() { echo "FAILED: $name: $1"; systemctl status --no-pager --full 2>/dev/null | head -n 40; exit 1; }
held() { echo "held: $name: $1"; }
# expect WHAT ACTUAL EXPECTED
expect() { [ "$2" = "$3" ] || fail "$1: it is
$2
and not
$3"; }
shows() { systemctl show "$@" | sort | tr '\n' ' ' | sed 's/ $//'; }
gone() { expect "$1 after delete" "$(shows "$1" -p LoadState -p ActiveState)" "ActiveState=inactive LoadState=not-found"; }

[ -n "$1" ] || mkdir -p /b/rootfs/bin /b/rootfs/proc /b/rootfs/dev /b/rootfs/sys /b/rootfs/tmp
[ -n "$1" ] || cp /bin/busybox /b/rootfs/bin/busybox
[ -n "$1" ] || for applet in sh sleep cat true echo id; do ln -s busybox /b/rootfs/bin/$applet; done

# bundle ARGS CGROUPSPATH RESOURCES [ANNOTATIONS [NAMESPACES]]
bundle() { cat > $dir/config.json <<END
{"ociVersion":"1.0.2","root":{"path":"$dir/rootfs"},"annotations":{${4:-}},
"process":{"cwd":"/","user":{"uid":0,"gid":0},"args":$1,"env":["PATH=/bin"],"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]}},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]}],
"linux":{$2"resources":$3,"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"}${5:-}]}}
END
}
SLEEP='["sleep","1000"]'
NONE='{"devices":[{"allow":false,"access":"rwm"}]}'
group() { cut -d: -f3 /proc/$1/cgroup; }
pid() { $R state $1 | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'; }
status() { $R state $1 | sed -n 's/.*"status": *"\([a-z]*\)".*/\1/p'; }

lifecycle() {
    bundle "$SLEEP" '"cgroupsPath":"sys-t.slice:p:a",' '{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}],
        "memory":{"limit":67108864},"cpu":{"shares":1024,"quota":25500,"period":50000,"cpus":"0"},"pids":{"limit":20}}' \
        '"org.systemd.property.TimeoutStopUSec":"uint64 7000000","org.systemd.property.CollectMode":"'"'inactive-or-failed'"'"'
    $R create --bundle $dir a >/tmp/log 2>&1 </dev/null || fail "create: $(cat /tmp/log)"
    expect "the unit's limits" "$(shows p-a.scope -p MemoryMax -p TasksMax -p CPUQuotaPerSecUSec -p CPUQuotaPeriodUSec -p CPUWeight -p AllowedCPUs)" \
        "AllowedCPUs=0 CPUQuotaPerSecUSec=510ms CPUQuotaPeriodUSec=50ms CPUWeight=$weight MemoryMax=67108864 TasksMax=20"
    expect "the unit" "$(shows p-a.scope -p Slice -p ActiveState -p Delegate -p TimeoutStopUSec -p CollectMode -p MemoryAccounting -p TasksAccounting)" \
        "ActiveState=active CollectMode=inactive-or-failed Delegate=yes MemoryAccounting=yes Slice=sys-t.slice TasksAccounting=yes TimeoutStopUSec=7s"
    scope=/sys/fs/cgroup/sys.slice/sys-t.slice/p-a.scope
    expect "the process's cgroup" /sys/fs/cgroup$(group $(pid a)) $scope
    expect "processes in the unit" "$(cat $scope/cgroup.procs | wc -l)" 1
    expect "pids.max" "$(cat $scope/pids.max)" 20
    expect "the device policy" "$(shows p-a.scope -p DevicePolicy) $(shows p-a.scope -p DeviceAllow | grep -o '/dev/char/10:229 rw')" "DevicePolicy=strict /dev/char/10:229 rw"
    $R start a || fail start
    $R exec a sh -c 'echo x > /dev/null && cat /proc/self/cgroup' </dev/null > /tmp/log 2>&1 || fail "exec: $(cat /tmp/log)"
    grep -q 'p-a.scope' /tmp/log || fail "exec is in $(cat /tmp/log)"
    held "create, start and exec in a scope with the spec's limits"

    $R update --memory 134217728 --pids-limit 30 a || fail update
    expect "the files after update" "$(cat $scope/memory.max $scope/pids.max | tr '\n' ' ')" "134217728 30 "
    expect "the unit after update" "$(shows p-a.scope -p MemoryMax -p TasksMax)" "MemoryMax=134217728 TasksMax=30"
    if [ $name = orlop-runtime ]; then
        # Of a period and a quota what isn't given stays.
        $R update --cpu-quota 10001 a || fail update
        expect "the quota" "$(shows p-a.scope -p CPUQuotaPerSecUSec -p CPUQuotaPeriodUSec) $(cat $scope/cpu.max)" "CPUQuotaPerSecUSec=210ms CPUQuotaPeriodUSec=50ms 10500 50000"
    fi
    systemctl daemon-reload
    expect "the limits after a reload" "$(cat $scope/memory.max $scope/pids.max | tr '\n' ' ')" "134217728 30 "
    $R exec a sh -c 'echo x > /dev/null' </dev/null || fail "a device after a reload"
    held "update is in force, with systemd too"

    $R pause a || fail pause
    expect "paused" "$(status a) $(cat $scope/cgroup.freeze)" "paused 1"
    $R resume a || fail resume
    expect "resumed" "$(status a)" running
    $R ps a > /tmp/log || fail "ps"
    grep -q "$(pid a)" /tmp/log || fail "ps: $(cat /tmp/log)"
    $R events --stats a > /tmp/log 2>&1 || fail "events: $(cat /tmp/log)"
    held "pause, resume, ps and events"

    $R kill a KILL || fail kill
    until [ "$(status a)" = stopped ]; do :; done
    $R delete a || fail delete
    gone p-a.scope
    [ ! -e $scope ] || fail "the cgroup is left"
    held "kill and delete leave nothing"

    bundle "$SLEEP" "" "$NONE"
    $R create --bundle $dir b >/tmp/log 2>&1 </dev/null || fail "create: $(cat /tmp/log)"
    $R start b || fail start
    expect "the default unit" "$(shows runc-b.scope -p Slice -p ActiveState)" "ActiveState=active Slice=system.slice"
    systemctl daemon-reexec &
    reexec=$!
    $R kill b KILL || fail "kill at a reexec"
    until [ "$(status b)" = stopped ]; do :; done
    $R delete b || fail "delete at a reexec"
    wait $reexec
    gone runc-b.scope
    held "a container's end while systemd starts anew"
}

# What only ours is asked.
further() {
    bundle '["true"]' "" '{"pids":{"limit":1}}'
    $R run --bundle $dir one </dev/null > /tmp/log 2>&1 || fail "a limit of one process: $(cat /tmp/log)"
    gone runc-one.scope
    bundle '["/nonexistent"]' "" "$NONE"
    for i in 1 2 3 4 5; do
        $R run --bundle $dir bad </dev/null > /tmp/log 2>&1 && fail "no such program"
        expect "a failed run" "$(cat /tmp/log; ls /run/orlop/runtime)" "error: exec /nonexistent: no such file or directory"
        gone runc-bad.scope
    done
    bundle "$SLEEP" '"cgroupsPath":"/a/b",' "$NONE"
    $R run --bundle $dir bad </dev/null > /tmp/log 2>&1 && fail "a bad path"
    grep -q 'expected cgroupsPath to be of format' /tmp/log || fail "a bad path: $(cat /tmp/log)"
    bundle "$SLEEP" "" "$NONE" '"org.systemd.property.NoSuchThing":"1"'
    $R run --bundle $dir bad </dev/null > /tmp/log 2>&1 && fail "a bad property"
    grep -q NoSuchThing /tmp/log || fail "a bad property: $(cat /tmp/log)"
    expect "what is left" "$(ls /run/orlop/runtime)" ""
    held "what is refused leaves nothing"

    bundle "$SLEEP" '"cgroupsPath":"system.slice:p:same",' "$NONE"
    $R run -d --bundle $dir first </dev/null >/tmp/log 2>&1 || fail "run: $(cat /tmp/log)"
    $R run -d --bundle $dir second </dev/null >/tmp/log 2>&1 && fail "two in one unit"
    grep -q UnitExists /tmp/log || fail "two in one unit: $(cat /tmp/log)"
    expect "the first" "$(status first)" running
    $R delete -f first || fail delete
    gone p-same.scope
    held "a unit that runs is another's"

    for i in 1 2 3; do
        systemctl daemon-reexec &
        reexec=$!
        $R run -d --bundle $dir again </dev/null >/tmp/log 2>&1 || fail "run at a reexec: $(cat /tmp/log)"
        wait $reexec
        systemctl daemon-reexec &
        reexec=$!
        $R update --pids-limit 9 again || fail "update at a reexec"
        $R delete -f again || fail "delete at a reexec"
        wait $reexec
        gone p-same.scope
    done
    held "run, update and delete while systemd starts anew"

    bundle "$SLEEP" '"cgroupsPath":"a.slice:ignored:a-b.slice",' '{"pids":{"limit":7}}'
    $R run -d --bundle $dir slice </dev/null >/tmp/log 2>&1 || fail "a slice: $(cat /tmp/log)"
    expect "a slice" "$(group $(pid slice)) $(shows a-b.slice -p TasksMax)" "/a.slice/a-b.slice TasksMax=7"
    $R delete -f slice || fail "delete a slice"
    [ ! -e /sys/fs/cgroup/a.slice/a-b.slice ] || fail "the slice is left"
    held "a slice"

    # By way of the bus.
    mv /run/systemd/private /run/systemd/private.away
    bundle "$SLEEP" "" "$NONE"
    $R run -d --bundle $dir bus </dev/null >/tmp/log 2>&1 || fail "by the bus: $(cat /tmp/log)"
    $R update --pids-limit 9 bus || fail "update by the bus"
    $R delete -f bus || fail "delete by the bus"
    mv /run/systemd/private.away /run/systemd/private
    gone runc-bus.scope
    held "by way of the system bus"
}

under_podman() {
    P="podman --root /p/root --runroot /p/run --tmpdir /p/tmp --runtime $runtime --cgroup-manager systemd --storage-driver vfs --events-backend file"
    N="--network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024"
    expect "podman run" "$($P run --rm $N --rootfs $dir/rootfs sh -c 'echo hi; exit 7' 2>&1; echo $?)" "hi
7"
    $P run -d --name d $N --memory 64m --cpus 0.5 --rootfs $dir/rootfs sleep 1000 >/tmp/id 2>&1 || fail "podman run -d: $(cat /tmp/id)"
    unit=libpod-$(cat /tmp/id).scope
    expect "podman's unit" "$(shows $unit -p Slice -p MemoryMax -p TasksMax -p CPUQuotaPerSecUSec)" "CPUQuotaPerSecUSec=500ms MemoryMax=67108864 Slice=machine.slice TasksMax=2048"
    expect "podman exec" "$($P exec d sh -c 'exit 5' 2>&1; echo $?)" 5
    $P pause d >/dev/null && $P unpause d >/dev/null || fail "podman pause"
    $P stats --no-stream d >/dev/null || fail "podman stats"
    $P stop -t 0 d >/dev/null 2>&1 || fail "podman stop"
    $P rm d >/dev/null 2>&1 || fail "podman rm"
    gone $unit
    held "podman with --cgroup-manager systemd"
}

# Below a user's own systemd: run again as a service of that, with a word.
if [ "$1" = rootless ]; then
    name=rootless dir=/u R="orlop-runtime --systemd-cgroup"
    bundle "$SLEEP" "" '{"memory":{"limit":67108864},"pids":{"limit":20}}' "" ',{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1000,"size":1}],"gidMappings":[{"containerID":0,"hostID":1000,"size":1}'
    $R run -d --bundle $dir a </dev/null || fail run
    expect "the unit" "$(systemctl --user show runc-a.scope -p MemoryMax -p TasksMax -p ControlGroup | sort | tr '\n' ' ')" \
        "ControlGroup=$(group $(pid a)) MemoryMax=67108864 TasksMax=20 "
    $R exec a id </dev/null >/dev/null || fail exec
    $R update --pids-limit 9 a || fail update
    expect "the unit after update" "$(systemctl --user show runc-a.scope -p TasksMax)" TasksMax=9
    $R pause a && $R resume a && $R delete -f a || fail delete
    expect "the unit after delete" "$(systemctl --user show runc-a.scope -p LoadState)" LoadState=not-found
    held "a user's container, with the user's systemd"
    exit 0
fi

rootless() {
    mkdir -p /run/user/1000 /u
    cp -a $dir/rootfs /u/rootfs
    touch /tmp/user
    chown -R user /run/user/1000 /u /tmp/user
    systemctl start user@1000 || fail "the user's systemd"
    su user -c 'XDG_RUNTIME_DIR=/run/user/1000 systemd-run --quiet --user -p Type=oneshot -p StandardOutput=file:/tmp/user -p StandardError=file:/tmp/user sh /vm/scenario rootless' || fail "a user's container: $(cat /tmp/user)"
    cat /tmp/user
    # It has no target to end by.
    systemctl kill --signal KILL user@1000
}

dir=/b
for name in runc orlop-runtime; do
    runtime=/bin/$name weight=100
    [ -e $runtime ] || runtime=/usr/sbin/$name
    # The formula of its time, which has the default of shares below that of weights.
    [ $name != runc ] || weight=39
    R="$runtime --systemd-cgroup"
    lifecycle
    [ $name != orlop-runtime ] || { further; rootless; }
    under_podman
done
cat /proc/uptime
