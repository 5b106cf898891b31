//! Tells whether somebody gave this process GPUs, whatever a driver says: a container with a GPU that cannot be used is a mistake, and
//! not a container without one.

use std::ffi::OsString;
use std::path::Path;

/// Values of `NVIDIA_VISIBLE_DEVICES` that give no GPU (NVIDIA Container Toolkit, "Environment variables").
const NO_GPUS: [&str; 3] = ["", "void", "none"];

/// Values of `CUDA_VISIBLE_DEVICES` that hide all GPUs (CUDA C++ Programming Guide, "CUDA Environment Variables").
const ALL_HIDDEN: [&str; 2] = ["", "-1"];

/// The sign that GPUs of NVIDIA were given to this process, as a clause; `None` where there is none, or where they were hidden on
/// purpose. `variable` reads the environment, and `devices` is the directory of device files, `/dev`.
pub fn given_gpus(variable: impl Fn(&str) -> Option<OsString>, devices: &Path) -> Option<String> {
    let text = |name| Some(variable(name)?.to_string_lossy().trim().to_owned());
    if text("CUDA_VISIBLE_DEVICES").is_some_and(|hidden| ALL_HIDDEN.contains(&hidden.as_str())) {
        return None;
    }
    // With the Container Device Interface the variable is `void` also where GPUs are given: then their files are the sign.
    match text("NVIDIA_VISIBLE_DEVICES").filter(|given| !NO_GPUS.contains(&given.as_str())) {
        Some(given) => Some(format!("NVIDIA_VISIBLE_DEVICES is {given}")),
        None => device_file(devices).map(|name| format!("there is {}", devices.join(name).display())),
    }
}

/// The first file of a GPU: `nvidia0` and so on. Others, such as `nvidiactl`, are there wherever the driver is.
fn device_file(devices: &Path) -> Option<String> {
    let names = std::fs::read_dir(devices).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_gpu = |name: &String| {
        let number = name.strip_prefix("nvidia").filter(|number| !number.is_empty());
        number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    names.filter(is_gpu).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(variables: &[(&str, &str)], files: &[&str]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(OsString::from(value))
        };
        given_gpus(variable, folder.path()).map(|sign| sign.replace(&folder.path().display().to_string(), "/dev"))
    }

    #[test]
    fn a_variable_or_a_device_file_is_a_sign_of_a_gpu_that_was_given() {
        for (value, files, expected) in [
            ("all", &[][..], Some("NVIDIA_VISIBLE_DEVICES is all")),
            ("GPU-5ad4", &["nvidia0"], Some("NVIDIA_VISIBLE_DEVICES is GPU-5ad4")),
            ("void", &["nvidia3", "nvidia12", "null"], Some("there is /dev/nvidia12")),
            ("none", &["nvidiactl", "nvidia-uvm", "nvidia-caps"], None),
            (" ", &["nvidia"], None),
        ] {
            assert_eq!(sign(&[("NVIDIA_VISIBLE_DEVICES", value)], files).as_deref(), expected, "{value} {files:?}");
        }
        assert_eq!(sign(&[], &["nvidia0"]).as_deref(), Some("there is /dev/nvidia0"));
        assert_eq!(sign(&[], &[]), None);
    }

    #[test]
    fn gpus_that_were_hidden_on_purpose_are_not_given() {
        for hidden in ["", "-1"] {
            let variables = [("NVIDIA_VISIBLE_DEVICES", "all"), ("CUDA_VISIBLE_DEVICES", hidden)];
            assert_eq!(sign(&variables, &["nvidia0"]), None);
        }
        assert!(sign(&[("NVIDIA_VISIBLE_DEVICES", "all"), ("CUDA_VISIBLE_DEVICES", "0")], &[]).is_some());
    }

    #[test]
    fn a_machine_without_device_files_has_no_gpus() {
        assert_eq!(given_gpus(|_| None, Path::new("/nonexistent")), None);
    }
}
