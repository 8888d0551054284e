"""The columns of the registry's sheets as data: names in English and Chinese, what a cell may hold, its unit.

Reading, the merge in SQL, the API's models and the documentation walk these tables.  A cell that is empty leaves
what is known as it is; ``-`` says that it is not known.  Nothing here knows a file or a database.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Literal

Kind = Literal["text", "number", "integer", "choice", "flag", "date"]

TEXT_MAX: Final = 100
CLEAR: Final = frozenset({"-", "–", "—", "－", "unknown", "未知", "不详"})
CLEAR_ALLOWED: Final = "- for unknown"

_VIN: Final = re.compile(r"[!-.0-~]{1,17}", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d{1,15}(\.\d{0,25})?|\.\d{1,25})([eE][+-]?\d{1,2})?", re.ASCII)
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d{1,15},\d{1,15}", re.ASCII)


class CellError(ValueError):
    """A value that a column cannot hold: ``wrong`` says why, ``allowed`` what it may be."""

    def __init__(self, wrong: str, allowed: str) -> None:
        super().__init__(f"{wrong}; give {allowed}")
        self.wrong, self.allowed = wrong, allowed


@dataclass(frozen=True, slots=True)
class Column:
    """A column.  ``sql`` is its type in PostgreSQL; ``cleared`` what ``-`` makes of it, ``clears`` whether it may.

    ``above`` (not included) or ``least`` and ``most`` bound a number.  ``choices`` maps every word to its value.
    """

    name: str
    kind: Kind
    text: str
    names: tuple[str, ...]  # other names in a header, the first in Chinese
    unit: str = ""
    above: float | None = None
    least: float | None = None
    most: float = math.inf
    choices: Mapping[str, str] = field(default_factory=dict)
    open_choice: bool = False  # other words are taken as they are
    cleared: Any = None
    clears: bool = True

    @property
    def sql(self) -> str:
        return _SQL[self.kind]

    @property
    def values(self) -> tuple[str, ...]:
        """What a choice stores."""
        return tuple(dict.fromkeys(self.choices.values()))

    @property
    def allowed(self) -> str:
        """What a cell may be, in words."""
        if self.name == "vin":
            return "1 to 17 printable ASCII characters without space or slash, as the vehicle sends it"
        if self.kind in ("number", "integer"):
            low = f"above {self.above:g}" if self.above is not None else f"from {self.least or 0:g}"
            unit = f" {self.unit}" if self.unit else ""
            kind = "a whole number" if self.kind == "integer" else "a number"
            return f"{kind} {low} to {self.most:g}{unit}, digits only"
        if self.kind == "choice":
            return f"one of {', '.join(self.values)}" + (" or another word" if self.open_choice else "")
        if self.kind == "flag":
            return "yes or no"
        if self.kind == "date":
            return "a date such as 2026-05-31, or a time such as 2026-05-31T08:00:00+08:00"
        return f"a text of 1 to {TEXT_MAX} characters"

    def read(self, cell: str, zone: tzinfo, decimal_comma: bool = False) -> Any:
        """The value of a cell that is neither empty nor blank-padded.  Raises ``CellError``."""
        if self.name == "vin":
            if cell in CLEAR or not _VIN.fullmatch(cell):
                raise CellError("is not a vehicle identification", self.allowed)
            return cell
        if cell.lower() in CLEAR:
            if not self.clears:
                raise CellError("cannot be unknown", self.allowed)
            return self.cleared
        if self.kind in ("number", "integer"):
            return self._number(cell, decimal_comma)
        if self.kind == "choice":
            word = _plain(cell)
            found = self.choices.get(word)
            if found is None and self.open_choice:
                return self._text(cell)
            if found is None:
                raise CellError("is none of the words known here", f"{self.allowed}, or {CLEAR_ALLOWED}")
            return found
        if self.kind == "flag":
            if (word := cell.lower()) not in _FLAGS:
                raise CellError("is neither yes nor no", self.allowed)
            return _FLAGS[word]
        return self._date(cell, zone) if self.kind == "date" else self._text(cell)

    def take(self, value: Any, zone: tzinfo) -> Any:
        """A value of JSON; null says that it is not known.  Raises ``CellError``."""
        if value is None:
            return self.read("-", zone)
        if isinstance(value, bool):
            if self.kind != "flag":
                raise CellError("is true or false", self.allowed)
            return value
        if isinstance(value, (int, float)):
            if self.kind not in ("number", "integer"):
                raise CellError("is a number", self.allowed)
            return self._bounded(value)
        if not isinstance(value, str) or not value.strip():
            raise CellError("is not a value", f"{self.allowed}, or null for unknown")
        return self.read(value.strip(), zone)

    def write(self, value: Any, zone: tzinfo) -> str:
        """A cell that reads back as ``value``, which is known."""
        if self.kind == "flag":
            return "yes" if value else "no"
        if self.kind == "date":
            time: datetime = value.astimezone(zone)
            whole_day = (time.hour, time.minute, time.second, time.microsecond) == (0, 0, 0, 0)
            return time.date().isoformat() if whole_day else time.isoformat()
        return repr(float(value)).removesuffix(".0") if self.kind == "number" else str(value)

    def _number(self, cell: str, decimal_comma: bool) -> float | int:
        if decimal_comma and _DECIMAL_COMMA.fullmatch(cell):
            cell = cell.replace(",", ".")
        if not _NUMBER.fullmatch(cell):
            raise CellError("is not a number", f"{self.allowed}, or {CLEAR_ALLOWED}")
        return self._bounded(float(cell))

    def _bounded(self, value: float) -> float | int:
        low = value > self.above if self.above is not None else value >= (self.least or 0)
        if not (low and value <= self.most):  # NaN is refused, too
            raise CellError("is outside the bounds", self.allowed)
        if self.kind == "number":
            return float(value)
        if value != int(value):
            raise CellError("is not whole", self.allowed)
        return int(value)

    def _text(self, cell: str) -> str:
        if len(cell) > TEXT_MAX:
            raise CellError(f"has {len(cell)} characters", self.allowed)
        if not cell.isprintable():
            raise CellError("has a character that cannot be printed", f"{self.allowed} on one line")
        return cell

    def _date(self, cell: str, zone: tzinfo) -> datetime:
        written = re.sub(r"^(\d{4})[/.年](\d{1,2})[/.月](\d{1,2})日?", _iso, cell)
        try:
            time = datetime.fromisoformat(written)
            time = (time if time.tzinfo else time.replace(tzinfo=zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise CellError("is not a date", self.allowed) from None
        if not 1990 <= time.year < 2200:
            raise CellError("lies outside 1990 to 2199", self.allowed)
        return time


def _iso(found: re.Match[str]) -> str:
    return f"{found[1]}-{int(found[2]):02}-{int(found[3]):02}"


def _plain(word: str) -> str:
    return re.sub(r"[\s_\-/]", "", word).lower()


def _words(**values: str) -> dict[str, str]:
    """Every word of a choice, as ``_plain`` writes it, to its value; the value itself is one."""
    return {_plain(word): value for value, words in values.items() for word in (value, *words.split())}


_SQL: Final[dict[Kind, str]] = {
    "text": "text", "number": "double precision", "integer": "integer", "choice": "text", "flag": "boolean",
    "date": "timestamptz",
}  # fmt: skip
_FLAGS: Final = {
    **dict.fromkeys(("yes", "true", "1", "y", "是"), True), **dict.fromkeys(("no", "false", "0", "n", "否"), False)
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sheet:
    """A kind of sheet: what a line is called, its key column, and the others in the order of a file."""

    name: str  # the table, where there is one
    noun: str
    key: Column
    columns: tuple[Column, ...]

    @property
    def all(self) -> tuple[Column, ...]:
        return (self.key, *self.columns)

    def column(self, name: str) -> Column:
        return next(column for column in self.all if column.name == name)


_CHEMISTRY: Final = _words(
    NCM="三元 三元锂 三元锂电池 三元材料 NMC 镍钴锰", NCA="镍钴铝", LFP="磷酸铁锂 磷酸铁锂电池 铁锂 LiFePO4",
    LMO="锰酸锂", LTO="钛酸锂", LCO="钴酸锂", NIB="钠离子 钠离子电池 钠电 Na-ion sodium",
)  # fmt: skip
USAGES: Final = _words(
    private="私家车 私人 私人乘用车 私家", taxi="出租车 出租 网约车 出租客运", rental="租赁 租赁车 分时租赁 共享",
    bus="公交 公交车 公交客运 城市公交", coach="客运 通勤 通勤车 班车 旅游客运 公路客运 commuter",
    logistics="物流 物流车 货运 货车 物流特种车", special="专用 专用车 环卫 环卫车 特种 工程",
)  # fmt: skip

MODEL: Final = Column("model", "text", "the model it is, as in the model catalogue", ("车型", "车辆型号", "型号"))
_BATTERY: Final = (
    Column("battery_kwh", "number", "nominal energy of the battery", ("电池能量", "电池电量", "总储电量", "总能量"),
           "kWh", above=0, most=5000),
    Column("battery_ah", "number", "rated capacity of the battery", ("额定容量", "电池额定容量"), "Ah", above=0,
           most=100_000),
    Column("chemistry", "choice", "cell chemistry", ("电池类型", "电池种类", "化学体系"), choices=_CHEMISTRY,
           open_choice=True),
    Column("battery_supplier", "text", "who made the battery", ("电池供应商", "电池厂家", "电池生产企业", "supplier")),
    Column("cells", "integer", "cells in series, as reported", ("单体数", "单体数量", "电芯数", "单体串数"), least=1,
           most=65_535),
    Column("probes", "integer", "temperature probes, as reported", ("探针数", "温度探针数", "探针数量"), least=1,
           most=65_535),
    Column("certified_kwh_per_100km", "number", "certified consumption of electricity",
           ("百公里电耗", "公告电耗", "工况电耗", "certified_consumption"), "kWh/100 km", above=0, most=1000),
)  # fmt: skip

VEHICLES: Final = Sheet(
    "vehicles",
    "vehicle",
    Column("vin", "text", "identification as the vehicle sends it", ("车架号", "车辆识别代号", "车辆识别码", "vin码"),
           clears=False),
    (
        MODEL,
        Column("fleet", "text", "the fleet it belongs to", ("车队", "运营单位", "所属企业", "所属单位")),
        Column("region", "text", "where it runs", ("地区", "区域", "城市", "运营城市", "省份")),
        Column("usage", "choice", "what it is for", ("用途", "车辆用途", "使用性质"), choices=USAGES),
        *_BATTERY,
        Column("plate", "text", "number plate", ("车牌", "车牌号", "车牌号码", "号牌号码")),
        Column("upload", "choice", "periodic, or on_change: exempt from counting missing records",
               ("上传方式", "上报方式"), choices=_words(periodic="周期 定时 周期上报", on_change="变化上报 变化"),
               cleared="periodic"),
        Column("registered_at", "date", "when it was registered; empty: now, for a new one",
               ("登记日期", "注册日期", "注册时间", "接入日期", "上牌日期"), clears=False),
    ),
)  # fmt: skip

MODELS: Final = Sheet(
    "models",
    "model",
    Column(MODEL.name, "text", "name of the model", MODEL.names, clears=False),
    (
        Column("manufacturer", "text", "enterprise that made or imported it",
               ("生产企业", "企业", "厂商", "制造商", "车企", "enterprise")),
        Column("category", "choice", "vehicle category", ("车辆类别", "车辆类型", "类别"),
               choices=_words(passenger="乘用车 轿车 car", bus="客车", special="专用车 货车 truck")),
        Column("powertrain", "choice", "BEV, PHEV (range extenders too) or FCV", ("动力类型", "燃料种类", "动力形式"),
               choices=_words(BEV="纯电动 纯电 EV", PHEV="插电式混合动力 插电混动 插混 增程 增程式 EREV REEV",
                              FCV="燃料电池 氢燃料电池 FCEV")),
        *_BATTERY,
        Column("electric_range_km", "number", "electric range of the type approval",
               ("续驶里程", "续航里程", "纯电续驶里程", "纯电动续驶里程", "electric_range", "range"), "km",
               least=0, most=5000),
        Column("kerb_mass_kg", "number", "kerb mass", ("整备质量", "kerb_mass"), "kg", above=0, most=100_000),
        Column("energy_density_wh_per_kg", "number", "energy density of the battery system",
               ("能量密度", "系统能量密度", "电池能量密度", "energy_density"), "Wh/kg", least=0, most=2000),
        Column("fuel_l_per_100km", "number", "certified consumption of fuel",
               ("百公里油耗", "燃料消耗量", "综合油耗", "fuel_consumption"), "L/100 km", least=0, most=200),
        Column("fuel_cell_kw", "number", "rated power of the fuel cell",
               ("燃料电池功率", "燃料电池系统额定功率"), "kW", least=0, most=5000),
        Column("temp_limit_c", "number", "the maker's highest temperature of a cell",
               ("最高允许温度", "电池温度上限"), "°C", least=-40, most=210),
        Column("current_inverted", "flag", "reports charging as positive current",
               ("电流反向", "电流方向相反"), cleared=False),
    ),
)  # fmt: skip
