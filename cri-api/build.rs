//! Generates the messages and stubs from our own description of the protocol, with no `protoc` on the machine.

/// The messages that a runtime keeps in its journal, and shows as JSON in verbose answers.
const RECORDED: [&str; 31] = [
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "DNSConfig",
    "PortMapping",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "NamespaceOption",
    "UserNamespace",
    "IDMapping",
    "SELinuxOption",
    "Int64Value",
    "SecurityProfile",
    "LinuxContainerResources",
    "HugepageLimit",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
    "WindowsNamespaceOption",
    "ContainerConfig",
    "ContainerMetadata",
    "ImageSpec",
    "KeyValue",
    "Mount",
    "Device",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "Capability",
    "CDIDevice",
    "WindowsContainerConfig",
    "WindowsContainerResources",
    "WindowsCpuGroupAffinity",
    "WindowsContainerSecurityContext",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let attribute = "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]";
    let builder = RECORDED
        .iter()
        .fold(tonic_prost_build::configure(), |builder, name| {
            builder.message_attribute(format!(".runtime.v1.{name}"), attribute)
        });
    let descriptors = protox::compile(["proto/runtime.proto", "proto/images.proto"], ["proto"])?;
    builder.compile_fds(descriptors)?;
    Ok(())
}
