//! Which of the processes that train together this one is, as its launcher's environment says.

use anyhow::{Context, bail, ensure};
use tch::Device;

/// The place of this process among those that train together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Number of this process, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// Number of this process on its machine, from 0: also the number of its GPU.
    pub local_rank: usize,
    /// How many there are on this machine.
    pub local_world_size: usize,
    /// The machine of the store by which they meet, and its port.
    pub master: (String, u16),
    /// Whether the launcher keeps the store; else rank 0 does.
    pub agent_store: bool,
    /// How many times the launcher has started all of them again.
    pub restarts: u64,
    /// Network interfaces for Gloo, with commas between them (`GLOO_SOCKET_IFNAME`); empty = the one towards the master.
    pub interfaces: String,
}

impl Place {
    /// The place that torchrun's variables give, or those of a Slurm job step with more than one task. `None` for a process that is alone.
    ///
    /// # Errors
    /// If variables are missing or contradict each other; the message names them.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Place>> {
        let vars = Vars(&get);
        let mut place = if get("RANK").is_some() {
            Place {
                rank: vars.number("RANK")?,
                world_size: vars.number("WORLD_SIZE")?,
                local_rank: vars.number_or("LOCAL_RANK", 0)?,
                local_world_size: vars.number_or("LOCAL_WORLD_SIZE", 1)?,
                master: (vars.text("MASTER_ADDR")?, vars.number("MASTER_PORT")?),
                agent_store: get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True"),
                restarts: vars.number_or("TORCHELASTIC_RESTART_COUNT", 0)?,
                interfaces: String::new(),
            }
        } else if get("SLURM_STEP_NUM_TASKS").is_some_and(|tasks| tasks != "1") {
            of_slurm(&vars)?
        } else {
            return Ok(None);
        };
        place.interfaces = get("GLOO_SOCKET_IFNAME").unwrap_or_default();
        ensure!(
            place.rank < place.world_size && place.local_rank < place.local_world_size,
            "the launcher's environment says rank {} of {}, and {} of {} on this machine: ranks count from 0",
            place.rank,
            place.world_size,
            place.local_rank,
            place.local_world_size
        );
        Ok(Some(place))
    }
}

/// The device that `name` says, of a process at `place`: with `auto` and `cuda`, each process of a machine takes the GPU of its local rank, or the only
/// one that it sees.
///
/// # Errors
/// If there is no such device, or many processes would share a GPU.
pub(crate) fn resolve_device(name: &str, place: Option<&Place>) -> anyhow::Result<Device> {
    let device = torch_ext::resolve_device(name)?;
    let Some(place) = place.filter(|place| place.local_world_size > 1) else {
        return Ok(device);
    };
    let is_own = !name.starts_with("cuda:") && device.is_cuda() && torch_ext::gpu_count()? > 1;
    ensure!(
        !name.starts_with("cuda:"),
        "--device {name}: {} processes on this machine would share this GPU; with --device cuda each takes its own",
        place.local_world_size
    );
    Ok(if is_own { torch_ext::resolve_device(&format!("cuda:{}", place.local_rank))? } else { device })
}

/// The place of a task of a Slurm job step, by the variables that `srun` sets.
fn of_slurm(vars: &Vars) -> anyhow::Result<Place> {
    let node: usize = vars.number("SLURM_NODEID")?;
    let tasks = vars.text("SLURM_STEP_TASKS_PER_NODE")?;
    let local_world_size =
        tasks_per_node(&tasks).get(node).copied().with_context(|| format!("SLURM_STEP_TASKS_PER_NODE is {tasks:?}"))?;
    let host = match (vars.0)("MASTER_ADDR") {
        Some(host) => host,
        None => {
            let nodes = vars.text("SLURM_STEP_NODELIST")?;
            first_host(&nodes).with_context(|| format!("SLURM_STEP_NODELIST is {nodes:?}: set MASTER_ADDR"))?
        }
    };
    let port = match (vars.0)("MASTER_PORT") {
        Some(_) => vars.number("MASTER_PORT")?,
        // Jobs that share a machine have different numbers.
        None => 20000 + (vars.number::<u64>("SLURM_JOB_ID")? % 20000) as u16,
    };
    Ok(Place {
        rank: vars.number("SLURM_PROCID")?,
        world_size: vars.number("SLURM_STEP_NUM_TASKS")?,
        local_rank: vars.number("SLURM_LOCALID")?,
        local_world_size,
        master: (host, port),
        agent_store: false,
        restarts: vars.number_or("SLURM_RESTART_COUNT", 0)?,
        interfaces: String::new(),
    })
}

/// `2(x3),1` -> 2, 2, 2, 1
fn tasks_per_node(text: &str) -> Vec<usize> {
    let parse = |part: &str| {
        let (tasks, times) = part.split_once("(x").unwrap_or((part, "1)"));
        let times: usize = times.trim_end_matches(')').parse().ok()?;
        Some(vec![tasks.parse().ok()?; times.min(1 << 20)])
    };
    text.split(',').filter_map(parse).flatten().collect()
}

/// `node[03-05,07],other1` -> `node03`
fn first_host(nodes: &str) -> Option<String> {
    let first = match nodes.split_once('[') {
        Some((prefix, rest)) if !prefix.contains(',') => {
            let (list, suffix) = rest.split_once(']')?;
            let number = list.split([',', '-']).next()?;
            format!("{prefix}{number}{}", suffix.split(',').next().unwrap_or_default())
        }
        _ => nodes.split(',').next()?.to_owned(),
    };
    (!first.is_empty()).then_some(first)
}

/// The environment, with messages that name the variable.
struct Vars<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Vars<'_> {
    fn text(&self, name: &str) -> anyhow::Result<String> {
        (self.0)(name).with_context(|| format!("the launcher has set RANK or SLURM_STEP_NUM_TASKS, but not {name}"))
    }

    fn number<N: std::str::FromStr>(&self, name: &str) -> anyhow::Result<N> {
        let text = self.text(name)?;
        match text.trim().parse() {
            Ok(number) => Ok(number),
            Err(_) => bail!("the environment variable {name} is {text:?}, which cannot be read as a number"),
        }
    }

    fn number_or<N: std::str::FromStr>(&self, name: &str, default: N) -> anyhow::Result<N> {
        if (self.0)(name).is_some() { self.number(name) } else { Ok(default) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(vars: &[(&str, &str)]) -> anyhow::Result<Option<Place>> {
        Place::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn torchrun_and_slurm_say_who_this_is() {
        assert_eq!(place(&[]).unwrap(), None);
        let torchrun = [
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "10.0.0.1"),
            ("MASTER_PORT", "29500"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("GLOO_SOCKET_IFNAME", "eth0,eth1"),
        ];
        let expected = Place {
            rank: 5,
            world_size: 8,
            local_rank: 1,
            local_world_size: 4,
            master: ("10.0.0.1".into(), 29500),
            agent_store: true,
            restarts: 2,
            interfaces: "eth0,eth1".into(),
        };
        assert_eq!(place(&torchrun).unwrap().unwrap(), expected);
        let srun = [
            ("SLURM_STEP_NUM_TASKS", "5"),
            ("SLURM_PROCID", "4"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2),1"),
            ("SLURM_STEP_NODELIST", "gpu[07-08,11]"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let expected = Place {
            rank: 4,
            world_size: 5,
            local_rank: 0,
            local_world_size: 1,
            master: ("gpu07".into(), 23456),
            agent_store: false,
            restarts: 0,
            interfaces: String::new(),
        };
        assert_eq!(place(&srun).unwrap().unwrap(), expected);
        // A batch script has the job's tasks, and no step.
        assert_eq!(place(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]).unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let refused = |vars: &[(&str, &str)]| place(vars).unwrap_err().to_string();
        assert!(refused(&[("RANK", "0"), ("WORLD_SIZE", "2")]).contains("not MASTER_ADDR"));
        assert!(refused(&[("RANK", "x")]).contains("RANK is \"x\""));
        let whole = [("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
        assert!(refused(&whole).contains("rank 2 of 2"));
        assert!(refused(&[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NODEID", "0")]).contains("SLURM_STEP_TASKS_PER_NODE"));
    }

    #[test]
    fn lists_of_hosts_and_tasks_are_read() {
        assert_eq!(tasks_per_node("4"), [4]);
        assert_eq!(tasks_per_node("2(x3),1"), [2, 2, 2, 1]);
        let first = |nodes| first_host(nodes).unwrap_or_default();
        assert_eq!(first("node1"), "node1");
        assert_eq!(first("a,b"), "a");
        assert_eq!(first("node[3,5-7].cluster,x"), "node3.cluster");
        assert_eq!(first("login,node[01-04]"), "login");
        assert_eq!(first(""), "");
    }
}
