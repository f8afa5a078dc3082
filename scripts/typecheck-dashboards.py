#!/usr/bin/env python3
"""Type-checks the dashboards against Grafana's published types (npm: @grafana/schema, typescript). Needs npm."""

import json
import pathlib
import subprocess
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docker/grafana/dashboards"
PACKAGES = ["@grafana/schema@13.2.3", "typescript@5.9.3"]
PANELS = {"timeseries": "TimeSeriesPanelCfg", "stat": "StatPanelCfg", "table": "TablePanelCfg", "xychart": "XYChartPanelCfg"}

# JSON holds the values of enums, which TypeScript tells from the enums themselves.
HEAD = """import type { Dashboard } from '@grafana/schema';
type Plain<T> = T extends string ? `${T}` : T extends number ? number : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""


def module(folder, kind, name):
    (path,) = sorted((folder / f"node_modules/@grafana/schema/dist/esm/raw/composable/{kind}").rglob(f"{name}_types.gen.d.ts"))
    return "./" + str(path.relative_to(folder)).removesuffix(".d.ts")


def main():
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, *PACKAGES], check=True)
        lines = [HEAD] + [f"import type * as {kind} from '{module(folder, kind, name)}';" for kind, name in PANELS.items()]
        count = 0
        for path in sorted(FOLDER.glob("*.json")):
            made = json.loads(path.read_text())
            lines.append(f"export const {path.stem}: Plain<Dashboard> = {json.dumps(made)};")
            for panel in made["panels"]:
                if panel["type"] != "row":
                    count += 1
                    kind, custom = panel["type"], json.dumps(panel["fieldConfig"]["defaults"]["custom"])
                    lines.append(f"export const o{count}: Plain<Partial<{kind}.Options>> = {json.dumps(panel['options'])};")
                    if kind in ("timeseries", "xychart"):
                        lines.append(f"export const f{count}: Plain<Partial<{kind}.FieldConfig>> = {custom};")
        (folder / "check.ts").write_text("\n".join(lines))
        flags = "--noEmit --strict --skipLibCheck --moduleResolution bundler --module esnext --target es2022".split()
        subprocess.run([folder / "node_modules/.bin/tsc", *flags, "check.ts"], check=True, cwd=folder)
        print(f"{count} panels conform to Grafana's types")


main()
