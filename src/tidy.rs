//! Repository checks as tests: what `ARCHITECTURE.md` and the style promise, and a machine can see.
//!
//! Each check reads files, never code that was compiled, and reports every offence at once with its place. The tables
//! at the top are the rules; a change to one of them is a design decision and belongs in its commit message. Rust is read by
//! a small scanner.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use scanner::{Function, functions, has_word, is_word, mask, without_tests};

#[path = "tidy_scanner.rs"]
mod scanner;

/// Which of our crates each crate may depend on. Nothing else is allowed.
const ARROWS: &[(&str, &[&str])] = &[
    // pure
    ("base", &[]),
    ("api", &[]),
    ("infer", &["base"]),
    ("prefix", &["base"]),
    ("fleet", &["base"]),
    ("routing", &["prefix", "fleet", "infer", "base"]),
    ("mesh-proto", &["base"]),
    ("limits", &["base"]),
    ("tokenizer", &["infer", "base"]),
    // services
    ("runtime", &["base"]),
    ("telemetry", &["runtime", "base"]),
    ("admission", &["runtime", "base"]),
    ("auth", &["runtime", "base"]),
    ("mesh", &["mesh-proto", "runtime", "base"]),
    ("store", &["base"]),
    ("upstream", &["api", "infer", "fleet", "prefix", "runtime", "base"]),
    (
        "gateway",
        &["api", "infer", "routing", "fleet", "prefix", "upstream", "admission", "auth", "limits", "runtime", "base"],
    ),
    // composition
    (
        "node",
        &[
            "gateway",
            "upstream",
            "mesh",
            "mesh-proto",
            "store",
            "admission",
            "auth",
            "limits",
            "telemetry",
            "runtime",
            "routing",
            "tokenizer",
            "prefix",
            "fleet",
            "infer",
            "api",
            "base",
        ],
    ),
    ("smg", &["node", "runtime", "telemetry", "mock-worker", "sim"]),
    // laboratory
    ("mock-worker", &["api", "infer", "runtime", "base"]),
    ("sim", &["mesh-proto", "fleet", "limits", "routing", "prefix", "base"]),
    ("fabric", &["base"]),
    ("xtask", &[]),
    (
        "benches",
        &["api", "base", "fleet", "infer", "limits", "mesh-proto", "prefix", "routing", "runtime", "sim", "tokenizer"],
    ),
];

/// Arrows that only tests may use, beside those above.
const TEST_ARROWS: &[(&str, &[&str])] = &[
    ("upstream", &["mock-worker"]),
    ("gateway", &["mock-worker"]),
    ("node", &["mock-worker"]),
    ("smg", &["api", "base", "fabric", "fleet", "gateway", "infer", "mock-worker"]),
];

/// Crates whose outputs follow from their inputs alone.
const PURE: &[&str] =
    &["base", "api", "infer", "prefix", "fleet", "routing", "mesh-proto", "sim", "tokenizer", "limits"];

/// What a pure crate may not name in its manifest: the doors to sockets, clocks, threads and chance.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio-util",
    "hyper",
    "hyper-util",
    "axum",
    "tower",
    "futures-util",
    "getrandom",
    "prometheus",
    "tracing",
    "rustls",
    "socket2",
];

/// External packages with a door of their own: who may name them.
const DOORS: &[(&str, &[&str])] = &[
    ("axum", &["gateway", "telemetry", "mock-worker"]),
    ("hyper", &["gateway", "upstream", "mock-worker", "telemetry", "benches"]),
    ("hyper-util", &["gateway", "upstream", "mock-worker", "telemetry", "smg", "benches"]),
    ("hyper-rustls", &["smg"]),
    ("rustls", &["gateway", "upstream", "mesh", "node", "smg"]),
    ("tokio-rustls", &["gateway", "upstream", "smg"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry-otlp", &["telemetry"]),
    ("tracing-opentelemetry", &["telemetry"]),
    ("tracing-subscriber", &["telemetry"]),
    ("toml", &["node", "fleet"]),
    ("clap", &["smg", "node", "mock-worker", "xtask", "benches"]),
    ("quinn", &["mesh"]),
    ("foca", &["mesh-proto"]),
    ("bincode", &["mesh-proto", "benches"]),
    ("crdts", &["mesh-proto"]),
    ("rand", &["mesh-proto"]),
    ("hickory-resolver", &["mesh"]),
    ("tun-rs", &["fabric"]),
    ("nix", &["fabric", "smg"]),
    ("rusqlite", &["store"]),
    ("prost", &["upstream"]),
    ("tonic", &["upstream"]),
    ("tonic-prost", &["upstream"]),
    // In upstream for its tests only: its decoder makes room for whatever a frame's length promises, so it is not for what
    // workers send.
    ("zeromq", &["mock-worker", "upstream"]),
    ("rmp-serde", &["mock-worker", "upstream"]),
    ("tokenizers", &["tokenizer"]),
    ("minijinja", &["tokenizer"]),
    ("minijinja-contrib", &["tokenizer"]),
    ("kube", &["discovery"]),
    ("wasmtime", &["plugins"]),
];

/// Dependencies that are named in a manifest for their effect, not in the code.
const UNNAMED: &[(&str, &str)] = &[];

/// Files that may be longer than [`FILE_LINES_MAX`]: tables, with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Functions that may be longer than [`FUNCTION_LINES_MAX`]: tables, with the reason.
const LONG_FUNCTIONS: &[(&str, &str)] = &[("src/gateway/metrics.rs::new", "one entry for each metric")];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;
const PARAMETERS_MAX: usize = 6;
const CRATE_LINES_MAX: usize = 8_000;
/// Packages in `Cargo.lock`, ours included: each one is built, read by licence checks, and trusted.
const LOCKED_PACKAGES_MAX: usize = 430;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Module names that say nothing about what is inside.
const VAGUE_MODULES: &[&str] = &[
    "common", "util", "utils", "types", "core", "misc", "manager", "helpers", "handler", "handlers", "context",
    "service", "services",
];

/// Text that may stand in no file, assembled so that this file does not contain it.
fn banned_text() -> Vec<(String, &'static str)> {
    let join = |parts: [&str; 2]| parts.concat();
    vec![
        (join(["/wor", "k/"]), "a path of one machine"),
        (join(["/roo", "t/"]), "a path of one machine"),
        (join(["/hom", "e/"]), "a path of one machine"),
        (join(["pypi", ".org"]), "a package host: name the package only"),
        (join(["registry", ".npm"]), "a package host: name the package only"),
        (join(["crates.io", "/api"]), "a package host: name the package only"),
        (join(["deb.debian", ".org"]), "a package host: name the package only"),
        (join(["artifac", "tory"]), "a package host: name the package only"),
        (join(["TO", "DO"]), "unfinished work belongs in an issue"),
        (join(["FIX", "ME"]), "unfinished work belongs in an issue"),
        (join(["todo", "!("]), "unfinished work belongs in an issue"),
        (join(["unimplemented", "!("]), "unfinished work belongs in an issue"),
        (join(["<<<<", "<<<"]), "a merge conflict"),
    ]
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let mut offences = Offences::default();
    for package in packages() {
        let Some(allowed) = row(ARROWS, &package.folder) else {
            offences.add(&package.manifest, "a crate without a row in ARROWS of src/tidy.rs");
            continue;
        };
        let for_tests = row(TEST_ARROWS, &package.folder).unwrap_or_default();
        for dependency in package.dependencies.iter().filter_map(|name| name.strip_prefix("smg-")) {
            if !allowed.contains(&dependency) {
                offences.add(&package.manifest, format!("arrow {} → {dependency} is not allowed", package.folder));
            }
        }
        for dependency in package.test_dependencies.iter().filter_map(|name| name.strip_prefix("smg-")) {
            if !allowed.contains(&dependency) && !for_tests.contains(&dependency) {
                offences.add(&package.manifest, format!("test arrow {} → {dependency} is not allowed", package.folder));
            }
        }
    }
    offences.none();
}

#[test]
fn pure_crates_reach_no_clock_socket_or_chance() {
    let mut offences = Offences::default();
    for package in packages().iter().filter(|package| PURE.contains(&package.folder.as_str())) {
        for dependency in package.dependencies.iter().filter(|name| IMPURE.contains(&name.as_str())) {
            offences.add(&package.manifest, format!("a pure crate names {dependency}"));
        }
        let rules = package.root.join("clippy.toml");
        let text = fs::read_to_string(&rules).unwrap_or_default();
        for path in [
            "std::collections::HashMap",
            "std::collections::HashSet",
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::sync::Mutex",
            "std::process::exit",
        ] {
            if !text.contains(&format!("\"{path}\"")) {
                offences.add(&rules, format!("a pure crate bans {path} there"));
            }
        }
    }
    offences.none();
}

#[test]
fn a_crates_own_clippy_rules_repeat_the_shared_ones() {
    let shared = read(&root().join("clippy.toml"));
    let settings: Vec<&str> = shared.lines().filter(|line| line.contains(" = ") && !line.starts_with(' ')).collect();
    let mut offences = Offences::default();
    for package in packages().iter().filter(|package| package.folder != "smg") {
        let rules = package.root.join("clippy.toml");
        let Ok(own) = fs::read_to_string(&rules) else { continue };
        for setting in settings.iter().filter(|setting| !setting.ends_with('[')) {
            if !own.lines().any(|line| line == *setting) {
                offences.add(&rules, format!("lacks `{setting}`"));
            }
        }
        for path in shared.lines().filter_map(|line| line.split('"').nth(1)) {
            let may_spawn = package.folder == "runtime" && path.ends_with("::spawn");
            let cannot_spawn = PURE.contains(&package.folder.as_str()) && path.starts_with("tokio::");
            if !may_spawn && !cannot_spawn && !own.contains(&format!("\"{path}\"")) {
                offences.add(&rules, format!("lacks the ban on {path}"));
            }
        }
    }
    offences.none();
}

#[test]
fn external_packages_stay_behind_their_doors() {
    let mut offences = Offences::default();
    for package in packages() {
        for name in package.dependencies.iter().chain(&package.test_dependencies) {
            if row(DOORS, name).is_some_and(|allowed| !allowed.contains(&package.folder.as_str())) {
                offences.add(&package.manifest, format!("{name} is not for {}", package.folder));
            }
        }
    }
    offences.none();
}

#[test]
fn every_dependency_is_used_and_explained() {
    let mut offences = Offences::default();
    let workspace = root().join("Cargo.toml");
    let packages = packages();
    let in_use: BTreeSet<&String> =
        packages.iter().flat_map(|package| package.dependencies.iter().chain(&package.test_dependencies)).collect();
    for (name, line) in section(&read(&workspace), "[workspace.dependencies]") {
        if !in_use.contains(&name) {
            offences.add(&workspace, format!("{name} is used by no crate"));
        }
        if !name.starts_with("smg-") && !line.contains(" # ") {
            offences.add(&workspace, format!("{name} does not say why it is here"));
        }
    }
    for package in &packages {
        let code: String = package.sources().iter().map(|file| file.masked.as_str()).collect();
        for name in package.dependencies.iter().chain(&package.test_dependencies) {
            let effect = UNNAMED.contains(&(package.folder.as_str(), name.as_str()));
            if !effect && !has_word(&code, &name.replace('-', "_")) {
                offences.add(&package.manifest, format!("{name} is not used"));
            }
        }
    }
    offences.none();
}

#[test]
fn the_lock_file_stays_small() {
    let lock = root().join("Cargo.lock");
    let count = read(&lock).lines().filter(|line| *line == "[[package]]").count();
    assert!(count <= LOCKED_PACKAGES_MAX, "Cargo.lock has {count} packages, more than {LOCKED_PACKAGES_MAX}");
}

#[test]
fn files_functions_and_crates_stay_short() {
    let mut offences = Offences::default();
    for package in packages() {
        let (mut crate_lines, mut test_lines) = (0, 0);
        for file in package.sources() {
            let place = relative(&file.path);
            let lines = file.production.lines().filter(|line| !line.trim().is_empty()).count();
            // Files of tests, scenarios among them, are of no weight to the crates that build on this one: they have a bound of
            // their own. What scenarios build on is code like any other.
            let is_scenario = place.starts_with("cluster-tests/") && !place.starts_with("cluster-tests/harness/");
            let is_test = is_scenario || place.contains("/tests/") || place.ends_with("tests.rs");
            *(if is_test { &mut test_lines } else { &mut crate_lines }) += lines;
            let long = file.production_lines();
            if long > FILE_LINES_MAX && row(LONG_FILES, &place).is_none() {
                offences.add(&file.path, format!("{long} lines outside tests, more than {FILE_LINES_MAX}"));
            }
            for function in functions(&file.production) {
                check_function(&file, &function, &mut offences);
            }
        }
        if crate_lines > CRATE_LINES_MAX {
            offences.add(&package.manifest, format!("{crate_lines} lines of code, more than {CRATE_LINES_MAX}"));
        }
        if test_lines > CRATE_LINES_MAX {
            offences.add(&package.manifest, format!("{test_lines} lines of tests, more than {CRATE_LINES_MAX}"));
        }
    }
    offences.none();
}

fn check_function(file: &Source, function: &Function, offences: &mut Offences) {
    let place = format!("{}::{}", relative(&file.path), function.name);
    if function.lines > FUNCTION_LINES_MAX && row(LONG_FUNCTIONS, &place).is_none() {
        offences
            .add(&file.path, format!("{} has {} lines, more than {FUNCTION_LINES_MAX}", function.name, function.lines));
    }
    if function.parameters > PARAMETERS_MAX {
        offences.add(
            &file.path,
            format!(
                "{} has {} parameters, more than {PARAMETERS_MAX}: make a struct",
                function.name, function.parameters
            ),
        );
    }
    if function.name.starts_with("get_") {
        offences.add(&file.path, format!("{}: the name without `get_` says as much", function.name));
    }
}

#[test]
fn every_module_is_reachable_and_says_what_it_is() {
    let mut offences = Offences::default();
    for package in packages() {
        let sources: BTreeMap<PathBuf, Source> =
            package.sources().into_iter().map(|file| (file.path.clone(), file)).collect();
        let mut reached = BTreeSet::new();
        let mut open: Vec<PathBuf> = package.targets();
        while let Some(path) = open.pop() {
            if let Some(file) = sources.get(&path).filter(|_| reached.insert(path.clone())) {
                open.extend(file.submodules());
            }
        }
        for (path, file) in &sources {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            if !reached.contains(path) {
                offences.add(path, "no `mod` line leads here");
            }
            if !file.text.starts_with("//! ") && !stem.ends_with("tests") {
                offences.add(path, "does not open with `//!` and what the module is");
            }
            if VAGUE_MODULES.contains(&stem.as_ref()) {
                offences.add(path, "a name that says nothing: put it where its noun lives");
            }
        }
    }
    offences.none();
}

#[test]
fn every_crate_is_described() {
    let architecture = read(&root().join("ARCHITECTURE.md"));
    let mut offences = Offences::default();
    for package in packages().iter().filter(|package| package.folder != "smg") {
        let opening = package.targets().first().map(|path| read(path)).unwrap_or_default();
        let described = opening.lines().take_while(|line| line.starts_with("//!")).count();
        if described < 2 {
            offences
                .add(&package.manifest, "the crate's `//!` says what it is, how it works and what it does not know");
        }
        if !architecture.contains(&format!("`{}`", package.folder)) {
            offences.add(&package.manifest, format!("ARCHITECTURE.md does not name `{}`", package.folder));
        }
    }
    offences.none();
}

#[test]
fn the_request_path_names_no_lock() {
    let path = root().join("src/gateway/pipeline.rs");
    let code = mask(&read(&path));
    let mut offences = Offences::default();
    for lock in ["Mutex", "RwLock", "parking_lot", "Semaphore"] {
        if has_word(&code, lock) {
            offences.add(&path, format!("names {lock}: requests read snapshots, atomics or lock-free structures"));
        }
    }
    offences.none();
}

#[test]
fn no_file_holds_banned_text() {
    let banned = banned_text();
    let mut offences = Offences::default();
    for path in files(root()) {
        let size = fs::metadata(&path).map_or(0, |found| found.len());
        if size > FILE_BYTES_MAX {
            offences.add(&path, format!("{size} bytes, more than {FILE_BYTES_MAX}"));
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            for (word, why) in banned.iter().filter(|(word, _)| line.contains(word.as_str())) {
                offences.add(&path, format!("line {}: `{word}`: {why}", index + 1));
            }
            if line.ends_with([' ', '\t', '\r']) && path.extension().is_none_or(|ending| ending != "md") {
                offences.add(&path, format!("line {}: space at the end", index + 1));
            }
        }
    }
    offences.none();
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut offences = Offences::default();
    for path in files(root()).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
        let text = read(&path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next()) {
            let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            let folder = path.parent().unwrap_or(root());
            if !outside && !folder.join(target).exists() {
                offences.add(&path, format!("the link to {target} leads nowhere"));
            }
        }
    }
    offences.none();
}

#[test]
fn dashboards_and_alerts_name_metrics_that_exist() {
    let catalogue = read(&root().join("docs/metrics.md"));
    let mut offences = Offences::default();
    for path in files(&root().join("deploy")) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let named: BTreeSet<&str> = text.split(|c: char| !is_word(c)).filter(|word| word.starts_with("smg_")).collect();
        for name in named {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            if !catalogue.contains(&format!("`{base}`")) {
                offences.add(&path, format!("{name} is not in docs/metrics.md"));
            }
        }
    }
    offences.none();
}

/// What a check found, told all at once.
#[derive(Default)]
struct Offences(Vec<String>);

impl Offences {
    fn add(&mut self, path: &Path, what: impl AsRef<str>) {
        self.0.push(format!("{}: {}", relative(path), what.as_ref()));
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "{} offences\n{}\n", self.0.len(), self.0.join("\n"));
    }
}

/// One package of the workspace, as its manifest and folder tell.
struct Package {
    /// Folder under `src/`; `smg` for the root package.
    folder: String,
    root: PathBuf,
    manifest: PathBuf,
    dependencies: Vec<String>,
    test_dependencies: Vec<String>,
}

impl Package {
    fn read(root: &Path, folder: &str) -> Package {
        let manifest = root.join("Cargo.toml");
        let text = read(&manifest);
        let names = |header| section(&text, header).into_iter().map(|(name, _)| name).collect();
        Package {
            folder: folder.to_owned(),
            root: root.to_owned(),
            dependencies: names("[dependencies]"),
            test_dependencies: names("[dev-dependencies]"),
            manifest,
        }
    }

    /// Roots from which `mod` lines are followed.
    fn targets(&self) -> Vec<PathBuf> {
        let named = read(&self.manifest);
        let named = named.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
        let usual = ["lib.rs", "main.rs", "tests/it/main.rs", "build.rs", "rivals/main.rs"];
        let mut found: Vec<PathBuf> = named.chain(usual).map(|path| self.root.join(path)).collect();
        found.retain(|path| path.extension().is_some_and(|ending| ending == "rs") && path.exists());
        found
    }

    fn sources(&self) -> Vec<Source> {
        let folders = match self.folder.as_str() {
            "smg" => vec![root().join("src/cli"), root().join("cluster-tests")],
            _ => vec![self.root.clone()],
        };
        let mut paths: Vec<PathBuf> = folders.iter().flat_map(|folder| files(folder)).collect();
        if self.folder == "smg" {
            paths.extend([root().join("src/main.rs"), root().join("src/tidy.rs"), root().join("src/tidy_scanner.rs")]);
        }
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "rs"));
        paths.into_iter().map(Source::read).collect()
    }
}

/// One Rust file, and the forms of it that the checks read.
struct Source {
    path: PathBuf,
    text: String,
    /// Comments and literals blanked, lines kept.
    masked: String,
    /// `masked` without items under `#[cfg(test)]`.
    production: String,
    tests_lines: usize,
}

impl Source {
    fn read(path: PathBuf) -> Source {
        let text = read(&path);
        let masked = mask(&text);
        let (production, tests_lines) = without_tests(&masked);
        Source { path, text, masked, production, tests_lines }
    }

    fn production_lines(&self) -> usize {
        self.text.lines().count() - self.tests_lines
    }

    /// Files that this one's `mod name;` lines ask for.
    fn submodules(&self) -> Vec<PathBuf> {
        let folder = self.path.parent().unwrap_or(root());
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let owns_folder = matches!(stem.as_str(), "lib" | "main" | "mod") || folder.join("Cargo.toml").exists();
        let folder = if owns_folder { folder.to_owned() } else { folder.join(stem) };
        let mut found = Vec::new();
        let (masked, text): (Vec<&str>, Vec<&str>) = (self.masked.lines().collect(), self.text.lines().collect());
        for (index, line) in masked.iter().enumerate() {
            let Some(name) = line.trim().strip_suffix(';').and_then(|line| line.split("mod ").nth(1)) else { continue };
            let above = index.checked_sub(1).and_then(|above| text.get(above)).copied().unwrap_or_default();
            match above.trim().strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                Some(path) => found.push(self.path.parent().unwrap_or(root()).join(path)),
                None => found.extend([folder.join(format!("{name}.rs")), folder.join(name).join("mod.rs")]),
            }
        }
        found
    }
}

/// The keys of one section of a manifest, each with its line.
fn section(manifest: &str, header: &str) -> Vec<(String, String)> {
    let inside = manifest.lines().skip_while(|line| *line != header).skip(1).take_while(|line| !line.starts_with('['));
    let entries = inside.filter(|line| !line.starts_with('#') && line.contains('='));
    entries.map(|line| (line.chars().take_while(|c| is_word(*c) || *c == '-').collect(), line.to_owned())).collect()
}

fn packages() -> Vec<Package> {
    let mut found = vec![Package::read(root(), "smg"), Package::read(&root().join("benches"), "benches")];
    let mut folders: Vec<PathBuf> =
        fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders.iter().filter(|folder| folder.join("Cargo.toml").exists()) {
        found.push(Package::read(folder, &folder.file_name().unwrap().to_string_lossy()));
    }
    found
}

/// Every file below a folder, but not what tools keep there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let generated = ["target", ".git", "__pycache__", ".pytest_cache", "Cargo.lock"].contains(&name.as_str());
        match path.is_dir() {
            _ if generated => {}
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn row<V: Copy>(table: &[(&str, V)], key: &str) -> Option<V> {
    table.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
