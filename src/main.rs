fn main() -> anyhow::Result<()> {
    gauntlet::cli::main()
}
