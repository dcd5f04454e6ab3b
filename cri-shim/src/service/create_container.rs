//! CreateContainer: everything that can be decided before the start is decided here, and written down.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri_api::v1::{
    ContainerConfig, ContainerEventType, CreateContainerRequest, CreateContainerResponse,
    IdMapping, Mount, NamespaceMode, security_profile,
};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tonic::Status;

use super::{Error, cdi, devices};
use crate::image::ImageRecord;
use crate::runtime::{Runtime, blocking};
use crate::spec::{self, Accounts, Inputs};
use crate::state::{Container, ContainerRecord, ImageMount, Sandbox, new_id, now_ns};

/// The specification's file in a container's folder.
pub(super) const SPEC: &str = "config.json";
/// Account files are small; a larger one isn't one.
const ACCOUNTS_LIMIT_BYTES: u64 = 4 << 20;

impl Runtime {
    /// CRI CreateContainer. A repeated request joins the one that is running, or gets the container that it made.
    pub async fn create_container(
        self: &Arc<Self>,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let mut config = request
            .config
            .ok_or_else(|| Error::Invalid("config is required".into()))?;
        let linux = config.linux.as_mut();
        if let Some(asked) = linux.and_then(|linux| linux.resources.as_mut()) {
            self.cgroups.tolerate(asked);
        }
        if config
            .metadata
            .as_ref()
            .is_none_or(|metadata| metadata.name.is_empty())
        {
            return Err(Error::Invalid("config.metadata.name is required".into()).into());
        }
        let sandbox = self.sandbox(&request.pod_sandbox_id)?;
        let key = format!("container {}", ContainerRecord::key(sandbox.id(), &config));
        let this = self.clone();
        let create = async move {
            this.make_container(sandbox, config)
                .await
                .map_err(Status::from)
        };
        let container_id = self.operations.join(&key, create).await?;
        Ok(CreateContainerResponse { container_id })
    }

    async fn make_container(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
    ) -> Result<String, Error> {
        let same = |container: &Arc<Container>| container.record.config.metadata == config.metadata;
        if let Some(container) = self
            .state
            .containers_of(sandbox.id())
            .into_iter()
            .find(same)
        {
            return Ok(container.id().to_owned());
        }
        if !sandbox.status().is_ready() {
            return Err(Error::Precondition(format!(
                "sandbox {} is not ready",
                sandbox.id()
            )));
        }
        check_user_namespace(&sandbox, &config)?;
        let this = self.clone();
        let container = blocking(move || this.write_container(&sandbox, config)).await?;
        self.tell_of(&container, ContainerEventType::ContainerCreatedEvent);
        Ok(container.id().to_owned())
    }

    fn write_container(
        &self,
        sandbox: &Sandbox,
        mut config: ContainerConfig,
    ) -> Result<Arc<Container>, Error> {
        let asked = config.image.clone().unwrap_or_default().image;
        let image = self.images.get(&asked)?;
        let image_mounts = self.image_mounts(&mut config)?;
        let mounted = image_mounts.iter().flat_map(|mount| &mount.layers);
        let hold = self.images.hold(image.layers.iter().chain(mounted));
        for mount in &image_mounts {
            // Whether there is such a part of the image is said now.
            drop(self.mount_image(mount, None)?);
        }
        let id = new_id();
        let folder = self.container_folder(&id);
        let made = self
            .write_folder(&folder, sandbox, config, &image, &id)
            .and_then(|record| {
                let record = ContainerRecord {
                    image_mounts,
                    ..record
                };
                Ok(self.state.add_container(record, hold)?)
            });
        made.inspect_err(|_| {
            // Best effort: the next start removes folders of no container.
            let _ = std::fs::remove_dir_all(&folder);
        })
    }

    /// The images that the request mounts; their ids are noted in it, for the container's status.
    fn image_mounts(&self, config: &mut ContainerConfig) -> Result<Vec<ImageMount>, Error> {
        let mut found = Vec::new();
        for mount in &mut config.mounts {
            let Some(asked) = mount.image.as_mut().filter(|image| !image.image.is_empty()) else {
                continue;
            };
            if !mount.readonly {
                return Err(Error::Invalid(
                    "mounts.readonly: a mounted image can't be written to".into(),
                ));
            }
            if !mount.host_path.is_empty() {
                return Err(Error::Invalid(
                    "mounts: an image and a host path exclude each other".into(),
                ));
            }
            let image = self.images.get(&asked.image)?;
            asked.image_ref = image.id.to_string();
            found.push(ImageMount {
                container_path: mount.container_path.clone(),
                layers: image.layers.clone(),
                sub_path: mount.image_sub_path.clone(),
                uid_mappings: mount.uid_mappings.clone(),
                gid_mappings: mount.gid_mappings.clone(),
            });
        }
        Ok(found)
    }

    fn write_folder(
        &self,
        folder: &Path,
        sandbox: &Sandbox,
        config: ContainerConfig,
        image: &ImageRecord,
        id: &str,
    ) -> Result<ContainerRecord, Error> {
        let image_config = &image.config.config;
        let security = spec::security_of(&config);
        let layers = self.images.directories(&image.layers)?;
        let user = read_accounts(&layers)?.resolve(&security, &image_config.user)?;
        let mounts = config
            .mounts
            .iter()
            .map(resolve_mount)
            .collect::<Result<Vec<_>, _>>()?;
        let cgroup = format!("{}/{id}", sandbox.record.cgroup);
        let mut specification = spec::container(Inputs {
            config: &config,
            sandbox: &sandbox.record.config,
            image: image_config,
            user: &user,
            files: &self.files(sandbox.id()).paths(),
            mounts: &mounts,
            devices: devices::of(&config, security.privileged)?,
            seccomp: seccomp(&config)?,
            cgroup: &cgroup,
            unified_cgroups: self.cgroups.unified(),
        })?;
        cdi::inject(&self.config.cdi_spec_dirs, &config, &mut specification)?;
        let root = spec::user_mapping(&spec::sandbox_namespaces_of(&sandbox.record.config))?;
        let root = root.map_or(0, |mapping| mapping.host_id);
        write_new(folder, &specification, root)?;
        let log_directory = &sandbox.record.config.log_directory;
        let logged = !log_directory.is_empty() && !config.log_path.is_empty();
        Ok(ContainerRecord {
            id: id.to_owned(),
            sandbox_id: sandbox.id().to_owned(),
            image_id: image.id.clone(),
            image_ref: image
                .digests
                .first()
                .cloned()
                .unwrap_or_else(|| image.id.to_string()),
            layers: image.layers.clone(),
            image_mounts: Vec::new(),
            volumes: volumes(&image_config.volumes, &config.mounts),
            user,
            stop_signal: stop_signal(&config, &image_config.stop_signal)?,
            created_at_ns: now_ns(),
            log_path: logged.then(|| Path::new(log_directory).join(&config.log_path)),
            cgroup,
            config,
        })
    }

    /// The specification that was written when the container was created.
    ///
    /// # Errors
    /// When the file is gone or damaged.
    pub(super) fn read_spec(&self, id: &str) -> Result<Spec, Error> {
        let path = self.container_folder(id).join(SPEC);
        let what = format!("read {}", path.display());
        let bytes = std::fs::read(&path).map_err(Error::io(what.clone()))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::io(what)(error.into()))
    }
}

/// The container's folder: the writable layer, overlayfs' work folder and the specification, which holds the
/// environment and with it secrets. The writable layer belongs to the container's root, `root` on the host.
fn write_new(folder: &Path, specification: &Spec, root: u32) -> Result<(), Error> {
    let what = || format!("make {}", folder.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::io(what()))?;
    for (name, mode) in [("fs", 0o755), ("work", 0o700)] {
        std::fs::DirBuilder::new()
            .mode(mode)
            .create(folder.join(name))
            .map_err(Error::io(what()))?;
    }
    std::os::unix::fs::chown(folder.join("fs"), Some(root), Some(root))
        .map_err(Error::io(what()))?;
    let bytes =
        serde_json::to_vec(specification).map_err(|error| Error::io(what())(error.into()))?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(folder.join(SPEC))
        .map_err(Error::io(what()))?;
    std::io::Write::write_all(&mut file, &bytes).map_err(Error::io(what()))
}

/// A container is in its sandbox's user namespace, and says so itself.
fn check_user_namespace(sandbox: &Sandbox, config: &ContainerConfig) -> Result<(), Error> {
    let options = spec::namespaces_of(config);
    let wanted = spec::user_mapping(&options)?;
    let made = spec::user_mapping(&spec::sandbox_namespaces_of(&sandbox.record.config))?;
    if wanted != made {
        let show = |mapping: Option<IdMapping>| match mapping {
            Some(mapping) => format!("{} ids from {}", mapping.length, mapping.host_id),
            None => "the host's".to_owned(),
        };
        return Err(Error::Invalid(format!(
            "linux.security_context.namespace_options.userns_options: user namespace config for sandbox is different \
             from container: {} and {}",
            show(made),
            show(wanted)
        )));
    }
    if made.is_some() && options.pid() == NamespaceMode::Node {
        return Err(Error::Invalid(
            "linux.security_context.namespace_options.pid: NODE and a user namespace of the pod exclude each other"
                .into(),
        ));
    }
    Ok(())
}

/// The image's volumes but those that the request mounts something at.
fn volumes(of_image: &[String], mounts: &[Mount]) -> Vec<String> {
    let volumes = of_image.iter().map(|volume| spec::clean_path(volume));
    let mounted = |volume: &String| {
        let mut places = mounts
            .iter()
            .map(|mount| spec::clean_path(&mount.container_path));
        places.any(|place| place == *volume)
    };
    volumes
        .filter(|volume| volume != "/" && !mounted(volume))
        .collect()
}

fn stop_signal(config: &ContainerConfig, image: &str) -> Result<i32, Error> {
    let asked = spec::signal_name(config.stop_signal()).unwrap_or_else(|| image.to_owned());
    match asked.as_str() {
        "" => Ok(15),
        text => spec::parse_signal(text)
            .ok_or_else(|| Error::Invalid(format!("{text:?} is not a signal"))),
    }
}

/// Follows a mount's host path to what it leads to; a missing one becomes a folder, as in every runtime.
fn resolve_mount(mount: &Mount) -> Result<Mount, Error> {
    if let Some(image) = mount.image.as_ref().filter(|image| !image.image.is_empty()) {
        // It comes as a descriptor; the name is for whoever reads the specification.
        return Ok(Mount {
            host_path: image.image_ref.clone(),
            ..mount.clone()
        });
    }
    let path = Path::new(&mount.host_path);
    if !path.is_absolute() {
        return Err(Error::Invalid(format!(
            "mounts.host_path: {:?} is not absolute",
            mount.host_path
        )));
    }
    if !path.exists() {
        let make = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path);
        make.map_err(Error::io(format!(
            "make the missing host path {}",
            path.display()
        )))?;
    }
    let real = path
        .canonicalize()
        .map_err(Error::io(format!("follow host path {}", path.display())))?;
    Ok(Mount {
        host_path: real.to_string_lossy().into_owned(),
        ..mount.clone()
    })
}

/// The filter that the security context asks for.
fn seccomp(config: &ContainerConfig) -> Result<Option<LinuxSeccomp>, Error> {
    use security_profile::ProfileType;
    let security = spec::security_of(config);
    let Some(profile) = &security.seccomp else {
        return Ok(None);
    };
    if security.privileged {
        return Ok(None);
    }
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(spec::default_seccomp(&security)?)),
        ProfileType::Localhost => {
            let path = profile.localhost_ref.trim_start_matches("localhost/");
            let what = format!("read seccomp profile {path}");
            let bytes = std::fs::read(path).map_err(Error::io(what.clone()))?;
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|error| Error::Invalid(format!("{what}: {error}")))
        }
    }
}

/// The account files of a root file system that isn't mounted for it: the topmost layer that has one wins, and links
/// are followed within the layer. (Where they aren't there, the empty file's rules apply.)
fn read_accounts(layers: &[PathBuf]) -> Result<Accounts, Error> {
    let open_layer = |path: &PathBuf| {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::io(format!("open layer {}", path.display()))(errno.into()))
    };
    let root: OwnedFd = match layers {
        [only] => open_layer(only)?,
        _ => {
            let lowers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
            linux::mount::overlay(linux::mount::Overlay {
                lowers: &lowers,
                upper: None,
                volatile: false,
            })?
        }
    };
    Ok(Accounts {
        passwd: read_inside(&root, "etc/passwd")?,
        group: read_inside(&root, "etc/group")?,
    })
}

/// Reads a file of a root file system, whose links lead nowhere but inside; a missing one, and what isn't a regular
/// file, is empty.
fn read_inside(root: impl AsFd, path: &str) -> Result<String, Error> {
    use std::io::Read;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Ok(file) = rustix::fs::openat2(root, path, flags, Mode::empty(), inside) else {
        return Ok(String::new());
    };
    let file = std::fs::File::from(file);
    let what = || Error::io(format!("read the image's /{path}"));
    if !file.metadata().map_err(what())?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_LIMIT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(what())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
