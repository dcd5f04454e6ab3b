//! The pod network: reads the network configuration list and runs its plugins (CNI 1.1 §2 to §4).
//!
//! [`Network`] is a handle on the configuration folder. It holds no state of its own: each operation reads the
//! folder, so a configuration that is written later, or changed, is seen by the next operation, and what has to
//! survive a restart is in the [`CniResult`] that the caller journals. `del` and `check` use the configuration
//! recorded there, not the one that the folder holds by then.
//!
//! A plugin of ours is called in process with the same environment, input and output as an executed one; any
//! other is executed from the plugin folders.

mod attachment;
mod chain;
mod conflist;
mod defaults;
mod error;
mod plugin;
mod result;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use attachment::{Attachment, AttachmentKey, PodIdentity, PortMapping};
pub use conflist::ConfList;
pub use defaults::{DEFAULT_BRIDGE, DEFAULT_CONFLIST, DEFAULT_NETWORK, default_conflist};
pub use error::{Error, PluginFailure};
pub use result::{CniResult, Interface};

/// What a plugin gave back: its exit status, and what it wrote on standard output.
#[derive(Debug, Clone)]
pub struct PluginOutput {
    /// Exit status, 0 for success.
    pub code: i32,
    /// The result or the error object, as JSON.
    pub stdout: Vec<u8>,
}

/// The plugins that the program itself holds: called with the plugin's name, the `CNI_*` environment and the
/// configuration; `None` if there is no such plugin.
pub type BuiltinPlugins = fn(&str, &BTreeMap<String, String>, &[u8]) -> Option<PluginOutput>;

/// How long one plugin may take, if executed.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// The node's pod network. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    conf_dir: PathBuf,
    plugins: plugin::Plugins,
}

impl Network {
    /// A network configured by the first configuration by name in `conf_dir` (usually `/etc/cni/net.d`), with
    /// the plugins of `builtin` and those found in `bin_dirs` (usually `/opt/cni/bin`), ours first.
    ///
    /// Nothing is read yet: a folder without a configuration shows in [`Network::status`].
    pub fn load(
        conf_dir: impl Into<PathBuf>,
        bin_dirs: Vec<PathBuf>,
        builtin: BuiltinPlugins,
    ) -> Self {
        let plugins = plugin::Plugins {
            bin_dirs,
            builtin,
            timeout: PLUGIN_TIMEOUT,
        };
        Self {
            inner: Arc::new(Inner {
                conf_dir: conf_dir.into(),
                plugins,
            }),
        }
    }

    /// The configuration folder.
    pub fn conf_dir(&self) -> &Path {
        &self.inner.conf_dir
    }

    /// The configuration that the next [`Network::add`] will use.
    ///
    /// # Errors
    /// [`Error::NotConfigured`] if the folder has none, [`Error::Config`] if the first is not valid.
    pub fn conflist(&self) -> Result<ConfList, Error> {
        conflist::load_first(&self.inner.conf_dir)
    }

    /// The file that [`Network::conflist`] is read from; `None` if the folder has none.
    ///
    /// # Errors
    /// [`Error::Read`] when the folder can't be read.
    pub fn conflist_path(&self) -> Result<Option<PathBuf>, Error> {
        conflist::first_file(&self.inner.conf_dir)
    }

    /// Connects a sandbox: brings its loopback device up and runs ADD of each plugin in order. If one fails,
    /// what was done is undone by DEL of all of them before the error is returned.
    ///
    /// # Errors
    /// As [`Network::conflist`]; [`Error::Plugin`] with the plugin's own code and message.
    pub async fn add(&self, attachment: &Attachment) -> Result<CniResult, Error> {
        let attachment = attachment.clone();
        self.blocking(move |inner| {
            let list = conflist::load_first(&inner.conf_dir)?;
            chain::add_loopback(&inner.plugins, &attachment)?;
            chain::add(&inner.plugins, &list, &attachment)
        })
        .await
    }

    /// Disconnects a sandbox: DEL of each plugin in reverse order, going on past a failure. Without a recorded
    /// result (the ADD was cut short) the folder's present configuration is used. Succeeds for a sandbox that
    /// is already disconnected, and for one whose namespace is gone.
    ///
    /// # Errors
    /// [`Error::Teardown`] with all failures. The caller tries again later.
    pub async fn del(
        &self,
        attachment: &Attachment,
        recorded: Option<&CniResult>,
    ) -> Result<(), Error> {
        let (attachment, recorded) = (attachment.clone(), recorded.cloned());
        self.blocking(move |inner| {
            let list = match &recorded {
                Some(result) => ConfList::parse(&result.config, Path::new("journal"))?,
                None => match conflist::load_first(&inner.conf_dir) {
                    // Then the ADD had none either.
                    Err(Error::NotConfigured { .. }) => return Ok(()),
                    other => other?,
                },
            };
            chain::del(&inner.plugins, &list, &attachment, recorded.as_ref())
        })
        .await
    }

    /// Asks each plugin whether the sandbox is still connected as it was (CNI 0.4.0 and later; succeeds
    /// without asking for older configurations and where the list sets `disableCheck`).
    ///
    /// # Errors
    /// [`Error::Plugin`] of the first plugin that finds a difference.
    pub async fn check(&self, attachment: &Attachment, recorded: &CniResult) -> Result<(), Error> {
        let (attachment, recorded) = (attachment.clone(), recorded.clone());
        self.blocking(move |inner| {
            let list = ConfList::parse(&recorded.config, Path::new("journal"))?;
            chain::check(&inner.plugins, &list, &attachment, &recorded)
        })
        .await
    }

    /// Tells each plugin which attachments exist; it drops what it holds for any other (CNI 1.1 and later;
    /// does nothing for older configurations and where the list sets `disableGC`).
    ///
    /// # Errors
    /// [`Error::Teardown`] with all failures.
    pub async fn gc(&self, valid: Vec<AttachmentKey>) -> Result<(), Error> {
        self.blocking(move |inner| {
            let list = conflist::load_first(&inner.conf_dir)?;
            chain::gc(&inner.plugins, &list, &valid)
        })
        .await
    }

    /// Whether an ADD could work now: there is a configuration, each of its plugins exists, and those that
    /// know STATUS (CNI 1.1) report that they are ready.
    ///
    /// # Errors
    /// The reason, fit for the CRI `NetworkReady` condition.
    pub async fn status(&self) -> Result<(), Error> {
        self.blocking(move |inner| {
            let list = conflist::load_first(&inner.conf_dir)?;
            chain::status(&inner.plugins, &list)
        })
        .await
    }

    /// Runs `work` where it may block: plugins wait for netlink, locks and child processes.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(cause) => Err(Error::Interrupted {
                cause: cause.to_string(),
            }),
        }
    }
}
