//! Putting the sources on top of each other.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, FromArgMatches, parser::ValueSource};
use smg_base::{ModelId, Secret};
use smg_fleet::{KvEventsSpec, Origin, WorkerSpec};
use smg_routing::PolicyKind;

use super::{
    Allowances, Config, ConfigErrors, Entry, Fault, Given, ModelSettings, Place, Problem, Sections, Source, check,
    file::{self, FileValues, ModelTable},
    limits_file,
    secrets::Secrets,
    sections::Routing,
    setting::{self, Kind, Setting, VARIABLE_PREFIX, nearest},
};

/// The file that is read when none is named.
const FILE_NAME: &str = "smg.toml";

/// Variables with our prefix that belong to other parts of the program.
const OTHER_VARIABLES: [&str; 2] = ["SMG_LOG", "SMG_URL"];

/// What a configuration is made from. Kept by the node, so that it can load again.
#[derive(Clone)]
pub struct Inputs {
    /// The flags of the command line.
    pub flags: Flags,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The folder in which `smg.toml` is looked for.
    pub directory: PathBuf,
}

impl Inputs {
    /// The environment and working folder of this process, with these flags.
    pub fn of_process(flags: Flags) -> Self {
        let text = |word: OsString| word.into_string().ok();
        let env = std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
        Self { flags, env, directory: PathBuf::from(".") }
    }
}

/// The flags that were given, as text; their values are not parsed yet.
#[derive(Clone, Default)]
pub struct Flags(BTreeMap<String, Vec<String>>);

impl Flags {
    /// Those of a command to which [`super::flags`] was added.
    pub fn of(matches: &ArgMatches) -> Self {
        let given = |id: &clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let values = |id: &clap::Id| {
            let texts = matches.try_get_many::<String>(id.as_str()).ok()??;
            Some((id.to_string(), texts.cloned().collect()))
        };
        Self(matches.ids().filter(|id| given(id)).filter_map(values).collect())
    }

    /// Adds values to a list, as if they had been given.
    pub fn add(&mut self, id: &str, values: impl IntoIterator<Item = String>) {
        self.0.entry(id.to_owned()).or_default().extend(values);
    }

    /// Gives a setting these values instead of those that were given.
    pub fn set(&mut self, id: &str, values: impl IntoIterator<Item = String>) {
        self.0.insert(id.to_owned(), values.into_iter().collect());
    }

    /// As arguments of a command line.
    pub fn arguments(&self) -> Vec<String> {
        let of = |(id, values): (&String, &Vec<String>)| {
            let flag = id.replace('_', "-");
            values.iter().map(|value| format!("--{flag}={value}")).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Those of a command line without the program's name and subcommand.
    pub fn parse<T: Into<OsString> + Clone>(args: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let command = setting::flags(clap::Command::new("smg")).no_binary_name(true);
        command.try_get_matches_from(args).map(|matches| Self::of(&matches))
    }
}

impl fmt::Debug for Flags {
    /// The names alone: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Config {
    /// Reads all sources. Starts nothing, and changes nothing when it fails.
    pub fn load(inputs: &Inputs) -> Result<Self, ConfigErrors> {
        let settings = Setting::all();
        let secrets = Secrets::new(&inputs.env);
        let mut loader = Loader { settings: &settings, secrets, inputs, problems: Vec::new(), warnings: Vec::new() };
        let config = loader.load();
        if loader.problems.is_empty() { Ok(config) } else { Err(ConfigErrors(loader.problems)) }
    }
}

struct Loader<'a> {
    settings: &'a [Setting],
    secrets: Secrets<'a>,
    inputs: &'a Inputs,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// The values in force, by id.
type InForce = BTreeMap<String, (Vec<String>, Source)>;

impl Loader<'_> {
    fn load(&mut self) -> Config {
        let file = self.file_path();
        let values = file.as_deref().map(|path| self.read(path)).unwrap_or_default();
        self.report_unknown_variables();
        let in_force = self.in_force(&values, file.as_deref());
        let sections = self.parse(&in_force);
        self.report_flags_without_effect(&in_force);
        let models: Vec<ModelSettings> =
            values.models.iter().filter_map(|table| self.model(table, &in_force, file.as_deref())).collect();
        let routings = std::iter::once(&sections.routing).chain(models.iter().map(|model| &model.routing));
        self.report_parameters_of_other_policies(&in_force, routings);
        let allowances = self.allowances(&sections);
        let config = Config {
            workers: workers(&sections, &values),
            aliases: sections.fleet.model_alias.iter().map(|one| (one.alias.clone(), one.model.clone())).collect(),
            models,
            allowances,
            file,
            warnings: Vec::new(),
            entries: self.settings.iter().map(|setting| entry(setting, in_force.get(setting.id()))).collect(),
            sections,
        };
        self.finish(config)
    }

    /// What the file with the limits says.
    fn allowances(&mut self, sections: &Sections) -> Allowances {
        let Some(path) = &sections.limits.limits_file else { return Allowances::default() };
        limits_file::read(path).unwrap_or_else(|reason| {
            let place = Place::Together(vec!["limits.limits_file".to_owned()]);
            self.problems.push(Problem::new(place, Fault::Invalid(format!("{}: {reason}", path.display()))));
            Allowances::default()
        })
    }

    /// Adds what can only be seen with everything together.
    fn finish(&mut self, mut config: Config) -> Config {
        let mut found = check::Findings::default();
        check::check(&config, &mut found);
        let broken: Vec<String> = self.problems.iter().flat_map(|problem| self.keys(&problem.place)).collect();
        // A contradiction with a value that could not be read would be one with its default.
        let is_real = |problem: &Problem| !self.keys(&problem.place).iter().any(|key| broken.contains(key));
        let real: Vec<Problem> = found.problems.into_iter().filter(is_real).collect();
        self.problems.extend(real);
        self.warnings.extend(found.warnings);
        for model in &config.models {
            config.aliases.extend(model.aliases.iter().map(|alias| (alias.clone(), model.id.clone())));
        }
        config.warnings = std::mem::take(&mut self.warnings);
        config
    }

    /// The settings that a place is about, by key.
    fn keys(&self, place: &Place) -> Vec<String> {
        let all = |which: &dyn Fn(&Setting) -> bool| {
            self.settings.iter().filter(|one| which(one)).map(Setting::key).collect::<Vec<_>>()
        };
        match place {
            Place::Flag(flag) => all(&|one| one.flag() == *flag),
            Place::Variable(variable) => all(&|one| one.variable() == *variable),
            Place::File { key, .. } => key.iter().cloned().collect(),
            Place::Together(keys) => keys.clone(),
        }
    }

    fn file_path(&self) -> Option<PathBuf> {
        let named = self.inputs.flags.0.get("config").and_then(|values| values.first()).cloned();
        let named = named.or_else(|| self.inputs.env.get(&setting::variable("config")).cloned());
        match named {
            Some(path) if path.is_empty() => None,
            Some(path) => Some(PathBuf::from(path)),
            None => Some(self.inputs.directory.join(FILE_NAME)).filter(|path| path.is_file()),
        }
    }

    fn read(&mut self, path: &Path) -> FileValues {
        match std::fs::read_to_string(path) {
            Ok(text) => file::read(path, &text, self.settings, &self.secrets, &mut self.problems),
            Err(error) => {
                let place = Place::File { path: path.to_owned(), line: None, key: None };
                self.problems.push(Problem::new(place, Fault::UnreadableFile(error.to_string())));
                FileValues::default()
            }
        }
    }

    /// For each setting, the value of the strongest source. Values of weaker sources are looked at too: a mistake
    /// that shows only once a flag is left out is worse than one that shows now.
    fn in_force(&mut self, values: &FileValues, file: Option<&Path>) -> InForce {
        let mut in_force = InForce::new();
        for setting in self.settings {
            let mut layers: Vec<(Vec<String>, Source, Place)> = Vec::new();
            if let Some(values) = self.inputs.flags.0.get(setting.id()) {
                layers.push((values.clone(), Source::Flag, Place::Flag(setting.flag())));
            }
            if let Some(values) = self.variable(setting) {
                layers.push((values, Source::Variable, Place::Variable(setting.variable())));
            }
            if let (Some(given), Some(path)) = (values.settings.get(setting.id()), file) {
                let source = Source::File { line: given.line };
                layers.push((given.values.clone(), source, in_file(path, given.line, setting.key())));
            }
            for (values, source, place) in layers {
                if let Some(values) = self.accept(setting, values, place) {
                    in_force.entry(setting.id().to_owned()).or_insert((values, source));
                }
            }
        }
        in_force
    }

    /// The value of the setting's environment variable. An empty one counts as not set.
    fn variable(&mut self, setting: &Setting) -> Option<Vec<String>> {
        let name = setting.variable();
        let raw = self.inputs.env.get(&name).filter(|raw| !raw.trim().is_empty())?;
        if is_service_link(&name, raw) {
            let reason = "Kubernetes sets this variable for a service named smg; use the flag or the file".to_owned();
            self.warnings.push(Problem::new(Place::Variable(name), Fault::NoEffect(reason)));
            return None;
        }
        if !setting.is_list() {
            return Some(vec![raw.clone()]);
        }
        let parts = raw.split(|one: char| one == ',' || one.is_whitespace());
        Some(parts.filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }

    /// The values, with references resolved, if the setting's parser takes them. An empty list counts as not set.
    fn accept(&mut self, setting: &Setting, values: Vec<String>, place: Place) -> Option<Vec<String>> {
        if !setting.is_in_files() {
            return Some(values);
        }
        let mut accepted = Vec::with_capacity(values.len());
        let before = self.problems.len();
        for raw in values {
            let resolved = if setting.kind() == Kind::Secret { self.secrets.resolve(&raw) } else { Ok(raw) };
            let checked = resolved.and_then(|value| setting.check(&value).map(|()| value).map_err(Fault::Invalid));
            match checked {
                Ok(value) => accepted.push(value),
                Err(fault) => self.problems.push(Problem::new(place.clone(), fault)),
            }
        }
        (self.problems.len() == before && !accepted.is_empty()).then_some(accepted)
    }

    fn parse(&self, in_force: &InForce) -> Sections {
        let arguments = |setting: &Setting| {
            let values = in_force.get(setting.id()).map(|(values, _)| values.as_slice()).unwrap_or_default();
            let values = values.iter().filter(|value| !value.is_empty());
            values.map(|value| setting.argument(value)).collect::<Vec<_>>()
        };
        let arguments: Vec<String> = self.settings.iter().flat_map(arguments).collect();
        let matches = setting::typed().no_binary_name(true).try_get_matches_from(arguments);
        let matches = matches.expect("each value was accepted by its own parser, and no setting excludes another");
        Sections::from_arg_matches(&matches).expect("the matches are those of the same definition")
    }

    fn model(&mut self, table: &ModelTable, in_force: &InForce, file: Option<&Path>) -> Option<ModelSettings> {
        let path = file?;
        let mut merged = in_force.clone();
        let mut overrides = Vec::new();
        for setting in self.settings {
            let Some(given) = table.overrides.get(setting.id()) else { continue };
            let place = in_file(path, given.line, format!("models.{}", setting.id()));
            let Some(values) = self.accept(setting, given.values.clone(), place) else { continue };
            let value = (values, Source::File { line: given.line });
            overrides.push(Entry { key: setting.id().to_owned(), ..entry(setting, Some(&value)) });
            merged.insert(setting.id().to_owned(), value);
        }
        let sections = self.parse(&merged);
        Some(ModelSettings {
            id: ModelId::from(table.id.as_str()),
            aliases: table.aliases.iter().map(|alias| ModelId::from(alias.as_str())).collect(),
            routing: sections.routing,
            retries: sections.retries,
            timeouts: sections.timeouts,
            overrides,
        })
    }

    fn report_flags_without_effect(&mut self, in_force: &InForce) {
        for setting in self.settings.iter().filter(|one| one.is_hidden()) {
            let Some((_, source)) = in_force.get(setting.id()) else { continue };
            let reason = setting.manual().trim_start_matches("No effect: ").to_owned();
            self.warnings.push(Problem::new(place(setting, source), Fault::NoEffect(reason)));
        }
    }

    /// The manual of a parameter begins with the policies it belongs to.
    fn report_parameters_of_other_policies<'r>(
        &mut self,
        in_force: &InForce,
        routings: impl Iterator<Item = &'r Routing> + Clone,
    ) {
        let is_used = |policy: &str| {
            let is_sticky = policy == PolicyKind::Manual.as_str();
            routings.clone().any(|one| one.policy.as_str() == policy || (is_sticky && one.routing_key_override))
        };
        for setting in self.settings {
            let manual = setting.manual();
            let Some((policies, _)) = manual.split_once(": ") else { continue };
            let Some((_, source)) = in_force.get(setting.id()) else { continue };
            let is_parameter = policies.split(", ").all(|policy| policy.parse::<PolicyKind>().is_ok());
            if is_parameter && !policies.split(", ").any(is_used) {
                let reason = format!("no policy in use has it, only {policies}");
                self.warnings.push(Problem::new(place(setting, source), Fault::NoEffect(reason)));
            }
        }
    }

    fn report_unknown_variables(&mut self) {
        let known: Vec<String> = self.settings.iter().map(Setting::variable).collect();
        for name in self.inputs.env.keys().filter(|name| name.starts_with(VARIABLE_PREFIX)) {
            let is_known = known.contains(name) || OTHER_VARIABLES.contains(&name.as_str());
            if is_known || name.starts_with("SMG_SERVICE_") || name.starts_with("SMG_PORT_") {
                continue;
            }
            let suggestion = nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
            self.warnings.push(Problem::new(Place::Variable(name.clone()), Fault::Unknown { suggestion }));
        }
    }
}

/// Kubernetes describes each service to each pod in variables made from its name; for a service named `smg` one of
/// them is called `SMG_PORT` and holds a URL.
fn is_service_link(name: &str, value: &str) -> bool {
    name.ends_with("_PORT") && value.contains("://")
}

fn place(setting: &Setting, source: &Source) -> Place {
    match source {
        Source::Flag => Place::Flag(setting.flag()),
        Source::Variable => Place::Variable(setting.variable()),
        Source::File { .. } | Source::Default => Place::Together(vec![setting.key()]),
    }
}

fn in_file(path: &Path, line: usize, key: String) -> Place {
    Place::File { path: path.to_owned(), line: Some(line), key: Some(key) }
}

fn entry(setting: &Setting, in_force: Option<&(Vec<String>, Source)>) -> Entry {
    let (values, source) = match in_force {
        Some((values, source)) => (values.clone(), source.clone()),
        None => (setting.defaults(), Source::Default),
    };
    let value = match values.first() {
        None => Given::Nothing,
        Some(_) if setting.kind() == Kind::Secret => Given::Hidden(Secret::new(values.join(" "))),
        _ => Given::Plain(values),
    };
    Entry { key: setting.key(), source, value }
}

/// Where the engine of a worker of `--worker-urls` tells what its KV cache holds: by its own flag, else by the flags for all.
fn kv_events(fleet: &super::sections::Fleet, url: &smg_fleet::WorkerUrl) -> Option<KvEventsSpec> {
    if let Some(own) = fleet.worker_kv_events.iter().find(|one| one.worker == *url) {
        return Some(own.spec.clone());
    }
    let port = fleet.kv_events_port?;
    let replay = fleet.kv_events_replay_port.map(|port| format!("tcp://*:{port}"));
    Some(KvEventsSpec { replay, ..KvEventsSpec::new(format!("tcp://*:{port}")) })
}

/// The workers of the flags and of the file; where both name a URL, the file says more about it.
fn workers(sections: &Sections, values: &FileValues) -> Vec<(WorkerSpec, Origin)> {
    let fleet = &sections.fleet;
    let from_file = |url: &smg_fleet::WorkerUrl| values.workers.iter().any(|(spec, _)| spec.url == *url);
    let flagged = fleet.worker_urls.iter().filter(|url| !from_file(url)).map(|url| {
        let mut spec = WorkerSpec::new(url.clone());
        spec.api_key = fleet.worker_api_key.clone();
        spec.runtime_type = fleet.backend;
        spec.kv_events = kv_events(fleet, url);
        (spec, Origin::Flag)
    });
    flagged.chain(values.workers.iter().map(|(spec, _)| (spec.clone(), Origin::File))).collect()
}
