//! The CNI plugins: one program, called under the name of each, or in process by [`run`].
//!
//! A plugin takes the `CNI_*` environment and the configuration as arguments and returns its exit status and output,
//! so that a CRI server can call it on a thread of its own; [`main`] is the same with the process's environment and
//! streams (CNI 1.1 §2). No runtime, no program executed, except a plugin of others that a configuration delegates to.
//!
//! A new plugin is one file and one line in the table here.

#[cfg(test)]
mod against_reference;
mod attach;
mod bandwidth;
mod bridge;
mod delegate;
mod dhcp;
mod dummy;
#[cfg(test)]
mod faults;
mod firewall;
mod host_device;
mod host_end;
mod host_local;
mod interface;
#[cfg(test)]
mod lab;
mod loopback;
mod masquerade;
mod netns;
mod network;
mod owned;
mod portmap;
mod protocol;
mod ptp;
mod sbr;
mod static_ipam;
mod sub_interface;
mod tap;
mod tuning;
mod vrf;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Read, Write};

use protocol::{Command, NetResult, Request};

pub use dhcp::command::main as dhcp_daemon;
pub use network::remove_network;
pub use protocol::{Error, NETNS_ENDS};

/// What a plugin gave back: its exit status, and what it wrote on standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// 0 for success, 1 for an error.
    pub code: i32,
    /// The result or the error object, as JSON; may be empty.
    pub stdout: Vec<u8>,
}

/// One plugin: what it does for each command.
struct Plugin {
    name: &'static str,
    add: fn(&Request) -> Result<NetResult, Error>,
    del: fn(&Request) -> Result<(), Error>,
    check: fn(&Request) -> Result<(), Error>,
    gc: fn(&Request) -> Result<(), Error>,
    status: fn(&Request) -> Result<(), Error>,
}

const PLUGINS: &[Plugin] = &[
    bandwidth::PLUGIN,
    bridge::PLUGIN,
    dhcp::PLUGIN,
    dummy::PLUGIN,
    firewall::PLUGIN,
    host_device::PLUGIN,
    host_local::PLUGIN,
    loopback::PLUGIN,
    portmap::PLUGIN,
    ptp::PLUGIN,
    sbr::PLUGIN,
    static_ipam::PLUGIN,
    sub_interface::IPVLAN,
    sub_interface::MACVLAN,
    sub_interface::VLAN,
    tap::PLUGIN,
    tuning::PLUGIN,
    vrf::PLUGIN,
];

/// The names that [`run`] and [`main`] answer to.
pub fn names() -> impl Iterator<Item = &'static str> {
    PLUGINS.iter().map(|plugin| plugin.name)
}

/// Runs the plugin `name` with the `CNI_*` variables `env` and the configuration `stdin`; `None` if there is no such
/// plugin. The calling thread's namespaces are not changed.
pub fn run(name: &str, env: &BTreeMap<String, String>, stdin: &[u8]) -> Option<Output> {
    let plugin = PLUGINS.iter().find(|plugin| plugin.name == name)?;
    Some(match dispatch(plugin, env, stdin) {
        Ok(stdout) => Output { code: 0, stdout },
        Err((version, error)) => Output {
            code: 1,
            stdout: error.report(version),
        },
    })
}

fn dispatch(
    plugin: &Plugin,
    env: &BTreeMap<String, String>,
    stdin: &[u8],
) -> Result<Vec<u8>, (Option<String>, Error)> {
    let command = Command::parse(env).map_err(|error| (None, error))?;
    if command == Command::Version {
        return protocol::version_report(stdin).map_err(|error| (None, error));
    }
    let request = Request::parse(command, env, stdin)?;
    let done = match command {
        Command::Add => (plugin.add)(&request).and_then(|result| {
            let encoded = result.encode(request.version);
            encoded.map_err(|error| error.and_undo((plugin.del)(&request)))
        }),
        Command::Del => (plugin.del)(&request).map(|()| Vec::new()),
        Command::Check => (plugin.check)(&request).map(|()| Vec::new()),
        Command::Gc => (plugin.gc)(&request).map(|()| Vec::new()),
        Command::Status | Command::Version => (plugin.status)(&request).map(|()| Vec::new()),
    };
    done.map_err(|error| (Some(request.version.name().to_owned()), error))
}

/// The plugin `name` as a program: environment and standard input in, standard output and exit status out. Of the
/// command line's further words `arguments`, only those of upstream's `dhcp daemon` mean something.
pub fn main(name: &str, arguments: &[String]) -> i32 {
    if let (dhcp::NAME, Some(("daemon", flags))) = (
        name,
        arguments
            .split_first()
            .map(|(first, rest)| (first.as_str(), rest)),
    ) {
        return dhcp_daemon(flags);
    }
    let env: BTreeMap<String, String> = env::vars()
        .filter(|(key, _)| key.starts_with("CNI_"))
        .collect();
    if env.is_empty() {
        let versions = protocol::Version::names().collect::<Vec<_>>().join(", ");
        eprintln!(
            "orlop CNI {name} plugin {}\nCNI protocol versions supported: {versions}",
            env!("CARGO_PKG_VERSION")
        );
        return 0;
    }
    let mut stdin = Vec::new();
    let output = match io::stdin().read_to_end(&mut stdin) {
        Ok(_) => run(name, &env, &stdin),
        Err(cause) => {
            let error = Error::io(format!("read standard input: {cause}"));
            Some(Output {
                code: 1,
                stdout: error.report(None),
            })
        }
    };
    let Some(output) = output else {
        eprintln!(
            "orlop: no CNI plugin {name:?}; there are {}",
            names().collect::<Vec<_>>().join(", ")
        );
        return 1;
    };
    match io::stdout()
        .write_all(&output.stdout)
        .and_then(|()| io::stdout().flush())
    {
        Ok(()) => output.code,
        Err(_) => {
            // Nobody learned what an ADD made: it is undone.
            if env
                .get("CNI_COMMAND")
                .is_some_and(|command| command == "ADD")
            {
                let mut env = env;
                env.insert("CNI_COMMAND".to_owned(), "DEL".to_owned());
                run(name, &env, &stdin);
            }
            1
        }
    }
}
